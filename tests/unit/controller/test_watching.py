"""Deaths and heartbeats; hangs; why a worker ended; what reconciling finds."""

import asyncio
import signal
import subprocess
import sys

import pytest

from erllama_host.config import ModelConfig
from erllama_host.controller.ends import explain
from erllama_host.controller.lifecycle import Model, State
from erllama_host.controller.reconcile import Act, Step, differences
from erllama_host.controller.upkeep import hang
from erllama_host.controller.watch import Heartbeats, ProcessWatch
from erllama_host.supervisor.notes import ExitNote


def sleeper() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


async def test_a_death_is_seen_and_can_be_caused():
    died = asyncio.get_running_loop().create_future()
    process = sleeper()
    watch = ProcessWatch(process.pid, died.set_result)
    watch.kill()
    assert await asyncio.wait_for(died, 20) == process.pid
    assert process.wait(20) == -signal.SIGKILL
    watch.kill()  # nobody any more: harmless


async def test_a_process_that_is_gone_already_counts_as_dead():
    process = sleeper()
    process.kill()
    process.wait(20)
    died = asyncio.get_running_loop().create_future()
    ProcessWatch(process.pid, died.set_result)
    assert await asyncio.wait_for(died, 20) == process.pid


async def test_a_watch_that_was_closed_tells_nothing_any_more():
    """Not even of a process that was gone when it began: its place may be another's by then."""
    process = sleeper()
    process.kill()
    process.wait(20)
    told = []
    ProcessWatch(process.pid, told.append).close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told == []


def test_silence_is_noticed():
    beats = Heartbeats(15.0)
    beats.heard("a", 0.0)
    beats.heard("b", 0.0)
    for second in range(1, 16):
        beats.heard("b", float(second))
        assert beats.overdue(float(second)) == []
    assert beats.overdue(15.5) == ["a"]
    beats.forget("a")
    assert beats.overdue(16.0) == []


def test_a_watcher_that_was_stopped_itself_accuses_nobody():
    beats = Heartbeats(15.0)
    beats.heard("a", 0.0)
    assert beats.overdue(1.0) == []
    assert beats.overdue(100.0) == [], "99 s of which it saw nothing"
    assert beats.overdue(101.0) == []
    for second in range(102, 120):
        late = beats.overdue(float(second))
    assert late == ["a"]


def model(state: State, **fields: object) -> Model:
    return Model("tiny", ModelConfig(backend="stub", load_timeout_s=60.0), "load", state=state, **fields)


def test_hangs():
    assert hang(model(State.READY), (61.0, 60.0), 0.0).startswith("hung: no progress for 61 s")
    assert hang(model(State.READY), (59.0, 60.0), 0.0) == ""
    assert "load_timeout_s" in hang(model(State.LOADING, pid=5), (0.0, 1.0), 61.0)
    assert hang(model(State.LOADING, pid=5), (0.0, 1.0), 59.0) == ""
    assert hang(model(State.LOADING), (0.0, 1.0), 61.0) == "", "waiting for its turn is not loading"
    assert hang(model(State.FAILED, pid=5), (99.0, 1.0), 999.0) == ""


@pytest.mark.parametrize(
    ("note", "kind", "words"),
    [
        (ExitNote(1, 0.0, -11), "crashed", "SIGSEGV"),
        (ExitNote(1, 0.0, -9), "crashed", "SIGKILL"),
        (ExitNote(1, 0.0, -99), "crashed", "signal 99"),
        (ExitNote(1, 0.0, 74), "out_of_memory", "memory"),
        (ExitNote(1, 0.0, 71), "load_failed", "loaded"),
        (ExitNote(1, 0.0, 3), "crashed", "exit code 3"),
        (ExitNote(1, 0.0, 0), "ended", "by itself"),
        (ExitNote(1, 0.0, 0, asked=True), "asked", "asked"),
        (None, "unknown", "not said"),
    ],
)
def test_ends_are_told_apart(note, kind, words):
    end = explain(note)
    assert end.kind == kind and words in end.text


def test_our_own_kill_and_the_kernels_are_told_apart_from_a_crash():
    killed = ExitNote(1, 0.0, -9)
    assert explain(killed, kill_reason="hung: x").kind == "hung"
    assert explain(killed, oom_killed=True).kind == "out_of_memory"
    assert explain(ExitNote(1, 0.0, -6), oom_killed=True).kind == "crashed"


def test_reconciling():
    ready, loading = model(State.READY), model(State.LOADING)
    assert differences([ready], {"cache": "active", "model:tiny": "active"}, {}) == []
    assert differences([ready], {"cache": "active"}, {}) == [Step(Act.BRING_UP, "tiny")]
    assert differences([loading], {}, {"tiny": True}) == [], "it is being started"
    assert differences([ready], {"model:tiny": "stopped"}, {}) == [Step(Act.MARK_STOPPED, "tiny")]
    assert differences([], {"model:tiny": "active", "controller": "active"}, {}) == [Step(Act.REMOVE_WATCHER, "tiny")]
    for state in (State.FAILED, State.AWAY, State.STOPPING):
        assert differences([model(state)], {}, {}) == []
