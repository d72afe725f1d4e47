"""The watchdog's clock: every piece of work starts it anew and says how long it may take; at rest it stands still."""

import time

import pytest

from erllama_host.config.model import StubConfig
from erllama_host.protocol import calls as c
from tests.support.engines import Clock, Harness
from tests.support.memory_store import MemoryStore
from tests.unit.workers.engine.test_engine_thread import WAIT_S, Running, request
from workers.commands import EmbedTexts, Finished, Work
from workers.engine import Ready
from workers.engine.pulse import Pulse


def spied(harness, owner, name, slow_s=0.0):
    """Call `owner.name` as it is; the work that was announced when it began, and when that was."""
    seen, real = [], getattr(owner, name)

    def spy(*arguments, **options):
        seen.append((harness.clock.now, harness.core.pulse.work))
        harness.clock.now += slow_s
        return real(*arguments, **options)

    setattr(owner, name, spy)
    return seen


def test_limits():
    clock = Clock()
    pulse = Pulse(60.0, clock)
    assert pulse.work is None
    pulse.begin()
    assert pulse.work == Work(clock.now, 60.0)
    pulse.begin(expected_s=5.9)
    assert pulse.work.limit_s == 60.0
    clock.now += 1
    pulse.begin(expected_s=6.1)
    assert pulse.work == Work(clock.now, 61.0), "ten times what it should take, where that is more"
    pulse.begin_bounded(300.0)
    assert pulse.work.limit_s == 360.0, "it ends by itself after 300 s"
    pulse.rest()
    assert pulse.work is None


def test_every_decode_has_a_clock_of_its_own():
    harness = Harness(hang_timeout_s=7.0)
    seen = spied(harness, harness.core.backend, "decode")
    harness.run("hello", max_tokens=5)
    assert len(seen) == 5
    assert all(work == Work(now, 7.0) for now, work in seen)


def test_a_slow_machine_gets_the_time_it_needs():
    """What was measured counts, by the rows of the step: a prefill of 64 rows that took 20 s may take 200 the next time."""
    harness = Harness(n_batch=64, n_ubatch=64)
    seen = spied(harness, harness.core.backend, "decode", slow_s=20.0)
    harness.run([65 + n % 20 for n in range(192)], max_tokens=1)
    assert [work.limit_s for _, work in seen[:2]] == [60.0, pytest.approx(200.0)]


def test_embeddings_count_and_are_measured():
    harness = Harness(embeddings=True)
    seen = spied(harness, harness.core.backend, "embed", slow_s=30.0)
    for _ in range(2):
        harness.call("embed", EmbedTexts([b"\1\0\0\0" * 10]))
    assert [work for _, work in seen] == [Work(seen[0][0], 60.0), Work(seen[1][0], pytest.approx(300.0))]


def test_saves_and_adapters_end_by_their_own_bounds(tmp_path):
    store = MemoryStore()
    harness = Harness(store=store.make, evict_save_timeout_s=200.0, load_timeout_s=500.0)
    saves = spied(harness, harness.core.kv, "save_all")
    loads = spied(harness, harness.core.adapters, "load")
    harness.call("shutdown", c.Save())
    harness.call("evict", c.Evict())
    (tmp_path / "a.gguf").write_bytes(b"GGUF1")
    harness.call("load_adapter", c.LoadAdapter(path=str(tmp_path / "a.gguf")))
    assert [work.limit_s for _, work in saves] == [260.0, 260.0]
    assert [work.limit_s for _, work in loads] == [560.0]


def test_an_engine_with_nothing_to_do_is_at_rest_and_one_that_hangs_is_not():
    running = Running(stub=StubConfig(hang_after_tokens=6), hang_timeout_s=3.0)
    assert isinstance(running.next(), Ready)
    running.engine.post(request(max_tokens=5))
    running.report(Finished)
    give_up_at = time.monotonic() + WAIT_S
    while running.engine.work is not None and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert running.engine.work is None
    running.engine.post(request("again", max_tokens=5))
    while time.monotonic() < give_up_at:
        work = running.engine.work
        if work is not None and time.monotonic() - work.since > 1.0:
            break
        time.sleep(0.01)
    assert running.engine.work == work and work.limit_s == 3.0, "the clock of the step that does not end goes on"
