"""Every way a host can end, wanted or not: nothing is left, or what is left still works."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from erllama_host.config import Config, Paths
from erllama_host.errors import ConfigError, HostUnavailable
from erllama_host.supervisor import host_state, private_paths, start_host, stop_host
from erllama_host.supervisor.handshake import ask_hello
from tests.support.hosts import Host, directories, eventually, family_of, leftovers

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]


def test_down_right_after_up():
    with directories() as paths:
        for _ in range(2):
            start_host(paths, Config(), detach=True)
            family = family_of(paths)
            assert stop_host(paths, drain_s=0.0)
            assert leftovers(paths, family) == []


def test_down_now_with_a_stopped_worker_and_a_stream():
    with directories() as paths:
        start_host(paths, Config(), detach=True)
        host = Host(paths, None)
        with host.client() as client:
            pid = client.load_stub("tiny", token_ms=20.0)["pid"]
            client.send("infer", {"text": "hello", "max_tokens": 5000}, "tiny")
            client.receive()
            os.kill(pid, signal.SIGSTOP)
            family = family_of(paths)
            assert stop_host(paths, now=True)
        assert leftovers(paths, family) == []


def test_down_lets_requests_finish():
    with directories() as paths:
        start_host(paths, Config(), detach=True)
        with Host(paths, None).client() as client:
            client.load_stub("tiny", token_ms=10.0)
            ref = client.send("infer", {"text": "hello", "max_tokens": 60, "ignore_eos": True}, "tiny")
            client.receive()
            assert stop_host(paths, drain_s=60.0)
            kinds = []
            while "done" not in kinds:
                envelope, body = client.receive(20)
                assert envelope.ref in (ref, "")
                kinds.append(envelope.kind)
            assert body["generated"] == 60 and not body.get("cancelled")


def test_a_detached_host_lives_without_its_parent():
    with directories() as paths:
        start_host(paths, Config(), detach=True)
        state = host_state(paths)
        os.kill(state.parent_pid, signal.SIGKILL)
        eventually(lambda: host_state(paths).parent_pid == 0, "the parent is gone")
        assert host_state(paths).circusd_pid == state.circusd_pid
        assert ask_hello(paths.endpoint, 10) is not None
        with pytest.raises(ConfigError, match=str(state.circusd_pid)):
            start_host(paths, Config(), detach=True)
        family = family_of(paths)
        assert stop_host(paths, drain_s=0.0)
        assert leftovers(paths, family) == []


def test_a_host_in_the_foreground_ends_with_its_caller():
    with directories() as paths:
        code = (
            "import sys, time; from pathlib import Path\n"
            "from erllama_host.config import Config, Paths; from erllama_host.supervisor import start_host\n"
            "paths = Paths(*map(Path, sys.argv[1:4])); start_host(paths, Config(), detach=False)\n"
            "print('up', flush=True); time.sleep(600)\n"
        )
        command = [sys.executable, "-c", code, str(paths.home), str(paths.run), str(paths.config_file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as caller:
            assert caller.stdout.readline() == "up\n"
            family = family_of(paths)
            assert len(family) >= 4
            caller.kill()
        eventually(lambda: not [each for each in family if each.is_running()], "everything has ended")


def test_the_next_private_host_removes_what_a_killed_one_left():
    code = (
        "import time; from erllama_host.supervisor import private_host\n"
        "with private_host() as host: print(host.paths.run.parent, flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) as owner:
        base = Path(owner.stdout.readline().strip())
        paths = Paths(base / "home", base / "run", base / "erllama.toml")
        family = family_of(paths)
        with private_paths():
            assert paths.run.is_dir() and len(family) >= 4, "its owner lives"
        owner.kill()
    assert base.is_dir()
    with private_paths():
        assert not base.exists()
        assert leftovers(paths, family) == []


WIDOW = """
import ctypes, os, signal, subprocess, sys
from pathlib import Path
from erllama_host.config import Paths
from erllama_host.supervisor.handshake import ask_hello
from tests.support.hosts import eventually
from tests.support.wire import WireClient

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become our children: only a parent learns their exit codes
paths = Paths(*map(Path, sys.argv[1:4]))
circusd = subprocess.Popen([sys.executable, "-m", "circus.circusd", "circus.ini"], stderr=subprocess.DEVNULL)
eventually(lambda: ask_hello(paths.endpoint), "the host answers")
with WireClient(paths.endpoint) as client:
    client.load_stub("tiny")
    client.infer("tiny", 40)
circusd.kill()
circusd.wait()
codes = []
while True:
    try:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
    except ChildProcessError:
        break
print(codes)
"""


def test_what_outlives_a_killed_circusd_leaves_in_order():
    """Nobody reads its log any more. Rows are saved all the same: the next circusd is to be warm."""
    with directories() as paths:
        paths.prepare()
        command = [sys.executable, "-c", WIDOW, str(paths.home), str(paths.run), str(paths.config_file)]
        environment = {**os.environ, **paths.environment(), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.stdout == "[0, 0, 0]\n", done.stderr


def test_a_host_that_cannot_start_says_why():
    with directories() as paths:
        paths.prepare()
        (paths.home / "events.jsonl").mkdir()
        with pytest.raises(HostUnavailable, match="ended while starting") as caught:
            start_host(paths, Config(), detach=True)
        lines = caught.value.details["last_log_lines"]
        assert any("controller.log" in line and "IsADirectoryError" in line for line in lines)
        assert family_of(paths) == [] and leftovers(paths, []) == []


def test_a_controller_that_keeps_dying_ends_the_host_with_a_failure():
    with directories() as paths:
        running = start_host(paths, Config(), detach=False)
        for path in (paths.home / "events.jsonl", paths.run / "exits" / "controller.json"):
            path.unlink(missing_ok=True)
        (paths.home / "events.jsonl").mkdir()
        os.kill(running.hello.pid, signal.SIGKILL)
        assert running.wait(60) == 1
        assert family_of(paths) == []
