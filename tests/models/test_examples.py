"""Every example runs, against the real small model."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from erllama_host import Client
from examples import (
    agents_sharing_a_prompt,
    asyncio_service,
    chat_loop,
    lora_per_customer,
    raw_client,
    restart_drill,
)
from tests.support.ggufs import smollm2_lora
from tests.support.hosts import running_host
from tests.support.models import smollm2

pytestmark = [pytest.mark.process, pytest.mark.model]

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = f"""
[models.smol]
path = {json.dumps(str(smollm2()))}
n_ctx = 2048
"""


@pytest.fixture(scope="module")
def host():
    with running_host(CONFIG) as running:
        with Client(running.endpoint) as client:
            client.model("smol").tokenize("loaded?")
        yield running


@pytest.fixture(autouse=True)
def environment(host, monkeypatch):
    for name, value in host.paths.environment().items():
        monkeypatch.setenv(name, value)


def test_raw_client(host):
    done = run([sys.executable, str(EXAMPLES / "raw_client.py"), "smol", "The capital of France is"])
    check_raw_output(done.stdout)


def test_raw_client_needs_nothing_of_ours():
    imports = re.findall(r"^(?:import|from) (\w+)", Path(raw_client.__file__).read_text(), re.MULTILINE)
    assert set(imports) - sys.stdlib_module_names == {"msgpack", "zmq"}


def test_raw_client_in_javascript(host, tmp_path):
    """Needs Node.js, and the registry for two packages; where either is missing there is nothing to try."""
    if shutil.which("npm") is None:
        pytest.skip("no Node.js here")
    for name in ("package.json", "raw_client.mjs"):
        shutil.copy(EXAMPLES / name, tmp_path)
    install = run(["npm", "install", "--no-audit", "--no-fund"], cwd=tmp_path, check=False)
    if install.returncode != 0:
        pytest.skip(f"the packages cannot be installed: {install.stderr[-200:]}")
    done = run(["node", "raw_client.mjs", "smol", "The capital of France is"], cwd=tmp_path)
    check_raw_output(done.stdout)


def run(command, cwd=None, check=True):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=100, env=dict(os.environ), check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def check_raw_output(text):
    assert "protocol 1" in text
    assert "Paris" in text
    assert "24 tokens" in text or "stop," in text


def test_chat_loop(monkeypatch, capsys):
    lines = iter(["What is the capital of France?", "And of Italy?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(chat_loop, "MAX_TOKENS", 16)
    chat_loop.main("smol")
    first, second = re.findall(r"\[(\w+): (\d+) of (\d+) tokens from the cache\]", capsys.readouterr().out)
    assert int(second[1]) > int(first[2]) / 2, "the second turn finds the first one's conversation"


def test_ctrl_c_stops_an_answer_and_not_the_program(monkeypatch, capsys):
    lines = iter(["Tell me a long story.", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    seen = []

    class Interrupted:
        """A stream whose reader presses Ctrl-C after the first piece."""

        def __init__(self, stream):
            self._stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._stream.close()

        def __next__(self):
            seen.append(1)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return next(self._stream)

        def __getattr__(self, name):
            return getattr(self._stream, name)

    original = chat_loop.Model.chat_stream
    monkeypatch.setattr(
        chat_loop.Model, "chat_stream", lambda self, *args, **options: Interrupted(original(self, *args, **options))
    )
    chat_loop.main("smol")
    assert "from the cache" in capsys.readouterr().out


def test_agents_share_a_prompt(monkeypatch, capsys):
    monkeypatch.setattr(agents_sharing_a_prompt, "RULES", "\n".join(agents_sharing_a_prompt.RULES.splitlines()[:12]))
    agents_sharing_a_prompt.main("smol")
    shared = re.findall(r": (\d+) of (\d+) tokens shared", capsys.readouterr().out)
    assert len(shared) == len(agents_sharing_a_prompt.AGENTS)
    assert all(int(read) > int(prompt) / 2 for read, prompt in shared)


async def test_asyncio_service(monkeypatch, unused_tcp_port):
    monkeypatch.setattr(asyncio_service, "MAX_TOKENS", 8)
    ready = asyncio.Event()
    service = asyncio.create_task(asyncio_service.serve("smol", unused_tcp_port, ready))
    await asyncio.wait_for(ready.wait(), 30)

    async def ask(line):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        writer.write(line.encode() + b"\n\n")
        answer = await asyncio.wait_for(reader.read(), 90)
        writer.close()
        await writer.wait_closed()
        return answer.decode()

    first, second = await asyncio.gather(ask("The capital of France is"), ask("Two and two is"))
    assert "Paris" in first
    assert second.strip()
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)


def test_restart_drill(monkeypatch, capsys):
    restart_drill.main("smol")
    assert "tokens lost 0" in capsys.readouterr().out


def test_lora_per_customer(capsys):
    lora_per_customer.main("smol", str(smollm2_lora()), str(smollm2_lora(seed=12)))
    assert len(capsys.readouterr().out.splitlines()) == 3
