"""What the periodic tasks do when something does not answer."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest

from erllama_host.config import Config
from erllama_host.controller import upkeep
from erllama_host.controller.upkeep import Upkeep
from erllama_host.controller.watch import Heartbeats
from erllama_host.errors import Timeout
from erllama_host.observability import Log


class Cache:
    answers = True

    async def ping(self, timeout_s):
        return self.answers


async def test_a_hung_daemon_is_killed_also_when_circusd_did_not_answer_at_first(tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    asked = []

    async def pids(watcher):
        asked.append(watcher)
        if len(asked) == 1:
            raise Timeout("circusd did not answer list within 10 s")
        return [process.pid]

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(upkeep, "time", SimpleNamespace(monotonic=lambda: clock.now))
    world = SimpleNamespace(
        config=Config(),
        paths=SimpleNamespace(run=tmp_path),
        log=Log("test", stream=io.StringIO()),
        cache=Cache(),
        circus=SimpleNamespace(pids=pids),
        journal=SimpleNamespace(add=lambda name, **fields: None),
        cache_available=False,
    )
    keeping = Upkeep(world, None, None, Heartbeats(15.0))

    async def look(at):
        clock.now = float(at)
        await keeping._watch_cache()

    await look(0)
    world.cache.answers = False
    for second in range(1, 16):
        await look(second)
    assert asked == [] and not world.cache_available
    with pytest.raises(Timeout):
        await look(16)
    await look(17)
    assert process.wait(20) == -9
    await look(18)
    assert asked == ["cache", "cache"], "the next daemon has its time to come up"
