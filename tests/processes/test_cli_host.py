"""The command line against real hosts: what an operator types, from `up` to `down`."""

import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from erllama_host.config import Paths
from erllama_host.supervisor.leftovers import shared_memory_directories
from erllama_host.supervisor.state import host_state
from erllama_host.supervisor.stop import stop_host
from tests.support.command_line import Shell

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

CONFIG = """
[models.one]
backend = "stub"
n_ctx = 2048

[models.broken]
backend = "stub"
stub = {fail_load = "this one never loads"}
"""


@pytest.fixture
def shell():
    """Private directories; whatever still runs there at the end is stopped."""
    base = Path(tempfile.mkdtemp(prefix="ec-"))
    paths = Paths(base / "home", base / "run", base / "erllama.toml")
    paths.config_file.write_text(CONFIG)
    yield Shell(paths)
    stop_host(paths, now=True)
    shutil.rmtree(base)


def assert_nothing_is_left(paths):
    assert not host_state(paths).running
    assert not list(paths.run.glob("*.sock"))
    assert not any(directory.exists() for directory in shared_memory_directories(paths))


def test_a_day_of_an_operator(shell):
    ran = shell.run("ps", code=3)
    assert "erllama up" in ran.stderr

    shell.run("up", "-d", "--wait", code=4)  # one of the two models never loads, and says so
    ran = shell.run("up", "-d", code=2)
    assert "already running" in ran.stderr

    models = {model["model_id"]: model for model in shell.json("ps")["models"]}
    assert (models["one"]["status"], models["one"]["n_ctx"]) == ("idle", 2048)
    assert models["broken"]["status"] == "failed"
    assert "this one never loads" in shell.run("status").stdout

    ran = shell.run("run", "one", "--raw", "Hello", "-n", "20", "--stats")
    assert ran.stdout.strip()
    assert "20 generated" in ran.stderr
    answer = json.loads(shell.run("run", "one", "--raw", "Hello", "-n", "20", "--json").stdout)
    assert answer["text"].strip() == ran.stdout.strip()
    assert answer["stats"]["generated_tokens"] == 20

    assert shell.run("load", "-o", "backend=stub", "--id", "two").stdout == "two\n"
    shell.run("load", "-o", "backend=stub", "--id", "two", code=1)
    assert "n_ctxt" in shell.run("load", "-o", "backend=stub", "-o", "n_ctxt=1", code=2).stderr
    assert "no-such.gguf" in shell.run("load", "no-such.gguf", code=4).stderr

    pid = shell.json("models")["pids"]["two"]
    shell.run("restart", "two")
    assert shell.json("models")["pids"]["two"] != pid
    shell.run("unload", "two")
    assert "two" not in shell.json("models")["pids"]
    shell.run("unload", "two", code=1)

    assert shell.run("tokenize", "one", "Hi", "--ids").stdout.split()
    assert len(shell.json("embed", "one", "a", "b")["vectors"]) == 2
    assert shell.json("counters")["counters"]["cache_available"] == 1
    assert "ready" in {json.loads(line)["name"] for line in shell.run("events", "--json").stdout.splitlines()}
    assert shell.run("logs", "controller", "-n", "5").stdout.strip()
    assert "ram" in shell.json("cache", "stats")["tiers"]
    assert "segments" in shell.json("cache", "ls")
    assert shell.json("cache", "verify")["corrupt_files"] == 0
    shell.run("cache", "gc")

    findings = {finding["check"]: finding for finding in shell.json("doctor")["findings"]}
    assert findings["one-host"]["severity"] == "ok"
    assert "a host runs" in findings["one-host"]["what"]

    shell.run("down")
    assert_nothing_is_left(shell.paths)
    shell.run("down", code=3)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "systemctl-stop"])
def test_a_host_in_the_foreground_ends_in_order(shell, ending):
    shell.paths.config_file.write_text("")
    process = shell.start("up")
    try:
        assert process.stderr is not None
        told = [process.stderr.readline(), process.stderr.readline()]
        assert "the host is up" in told[0]
        shell.run("load", "-o", "backend=stub", "--id", "x")
        assert "loading" in _until(process, "loading")
        process.send_signal(ending)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert_nothing_is_left(shell.paths)


def test_a_stream_to_a_reader_that_leaves_is_quiet(shell):
    shell.paths.config_file.write_text('[models.one]\nbackend = "stub"\n')
    shell.run("up", "-d", "--wait")
    producer = shell.start("run", "one", "--raw", "Hello", "-n", "2000")
    assert producer.stdout is not None
    producer.stdout.read(1)
    producer.stdout.close()
    _, told = producer.communicate(timeout=60)
    assert "Traceback" not in told
    shell.run("down", "--now")


def test_events_follow_a_host_and_end_with_ctrl_c(shell):
    shell.paths.config_file.write_text("")
    shell.run("up", "-d")
    follower = shell.start("events", "-f", "--json")
    try:
        shell.run("load", "-o", "backend=stub", "--id", "x")
        assert json.loads(_until(follower, '"ready"'))["model"] == "x"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
    finally:
        follower.kill()
        follower.communicate()
    shell.run("down")


def _until(process: "subprocess.Popen[str]", word: str) -> str:
    """The first line of output with `word`; the test's own time limit bounds it."""
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)
