"""What is mended in circus: with an arbiter that behaves, one defect a test."""

import asyncio
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import circus
import pytest

from erllama_host.errors import InternalError
from erllama_host.supervisor import mend


class FakeWatcher:
    def __init__(self, name: str):
        self.name, self.processes, self.managed, self.reaped, self.stopping = name, {}, 0, [], False
        self.stream_redirector = None
        self.gate: asyncio.Event | None = None

    def is_stopping(self) -> bool:
        return self.stopping

    def reap_process(self, pid: int) -> None:
        self.reaped.append(self.processes.pop(pid).pid)

    async def manage_processes(self) -> None:
        self.managed += 1
        if self.gate is not None:
            await self.gate.wait()


class FakeArbiter:
    def __init__(self, *watchers: FakeWatcher):
        self.watchers, self.reaps = list(watchers), 0
        self.loop = SimpleNamespace(asyncio_loop=asyncio.get_running_loop())
        self.ctrl = SimpleNamespace(dispatch=self.dispatched, caller=SimpleNamespace(callback=None))
        self.commands: list[str] = []
        self._stopping, self._exclusive_running_command = False, None
        self.manage_watchers = None

    def dispatched(self, job) -> None:
        self.commands.append(json.loads(job[1])["command"])

    def iter_watchers(self):
        return self.watchers

    def reap_processes(self) -> None:
        self.reaps += 1


def command(name: str) -> tuple[None, bytes]:
    return (None, json.dumps({"command": name}).encode())


async def until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


async def test_another_circus_is_refused(monkeypatch):
    mend.check(FakeArbiter())
    broken = FakeArbiter()
    del broken.ctrl.caller
    with pytest.raises(InternalError, match="caller"):
        mend.check(broken)
    monkeypatch.setattr(circus, "__version__", "0.20.0")
    with pytest.raises(InternalError, match=r"0\.19\.0 is needed"):
        mend.check(FakeArbiter())


async def test_passes_never_overlap_and_none_is_forgotten():
    watcher = FakeWatcher("a")
    watcher.gate = asyncio.Event()
    arbiter = FakeArbiter(watcher)
    reaper = mend.Reaper(arbiter, lambda watcher: True)
    reaper.wake()
    await until(lambda: watcher.managed == 1)
    for _ in range(5):
        reaper.wake()
    await asyncio.sleep(0)
    assert watcher.managed == 1
    watcher.gate.set()
    await until(lambda: watcher.managed == 2)
    await asyncio.sleep(0.02)
    assert watcher.managed == 2, "five wishes during one pass are one more pass"


async def test_a_watcher_in_its_pause_is_reaped_but_not_started():
    waiting, running = FakeWatcher("waiting"), FakeWatcher("running")
    waiting.processes[7] = SimpleNamespace(pid=7, is_alive=lambda: False)
    running.processes[8] = SimpleNamespace(pid=8, is_alive=lambda: True)
    arbiter = FakeArbiter(waiting, running)
    await mend.Reaper(arbiter, lambda watcher: watcher is running).manage()
    assert (waiting.managed, running.managed, arbiter.reaps) == (0, 1, 1)
    assert waiting.reaped == [7] and running.reaped == []


async def test_passes_wait_for_commands_that_spawn_and_for_no_others():
    watcher = FakeWatcher("a")
    arbiter = FakeArbiter(watcher)
    reaper = mend.Reaper(arbiter, lambda watcher: True)
    arbiter._exclusive_running_command = "arbiter_rm_watcher"
    await reaper.manage()
    assert watcher.managed == 1
    arbiter._exclusive_running_command = "arbiter_start_watchers"
    await reaper.manage()
    assert watcher.managed == 1
    arbiter._exclusive_running_command = None
    await until(lambda: watcher.managed == 2)
    arbiter._stopping = True
    await reaper.manage()
    assert watcher.managed == 2


async def test_commands_wait_for_the_lock_and_looking_does_not():
    arbiter = FakeArbiter()
    mend.queue_commands(arbiter)
    arbiter._exclusive_running_command = "watcher_restart"
    for name in ("quit", "status", "add"):
        arbiter.ctrl.dispatch(command(name))
    arbiter.ctrl.dispatch(command("list"))
    assert arbiter.commands == ["status", "list"]
    arbiter._exclusive_running_command = None
    await until(lambda: sorted(arbiter.commands) == ["add", "list", "quit", "status"])


async def test_a_command_that_waits_too_long_gets_circuss_own_answer(monkeypatch):
    monkeypatch.setattr(mend, "QUEUE_LIMIT_S", 0.03)
    arbiter = FakeArbiter()
    mend.queue_commands(arbiter)
    arbiter._exclusive_running_command = "watcher_restart"
    arbiter.ctrl.dispatch(command("add"))
    await until(lambda: arbiter.commands == ["add"])


def test_last_words_are_taken_from_the_pipe_of_a_dead_process():
    process = subprocess.Popen([sys.executable, "-c", "import os; os.write(2, b'x' * 60000)"], stderr=subprocess.PIPE)
    process.wait(30)
    words, removed = [], []
    redirector = SimpleNamespace(
        get_process_pipes=lambda process: [("stderr", process.stderr)],
        redirect={"stderr": lambda data: words.append(data["data"])},
        remove_redirections=removed.append,
    )
    mend.take_last_words(SimpleNamespace(stream_redirector=redirector), process)
    assert b"".join(words) == b"x" * 60000 and removed == [process]
    process.stderr.close()
    mend.take_last_words(SimpleNamespace(stream_redirector=None), process)


def test_exit_codes_of_children_nobody_waited_for():
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert mend.exit_code_of(pid) == 7
    assert mend.exit_code_of(pid) == -9, "nobody knows any more"
