"""What becomes of saves that a slow, absent or full store does not take at once, on the stub and in time that is told to pass."""

import pytest

from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SegmentKind
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore

KINDS = ["attention", "recurrent", "hybrid"]
PROMPT = "the quick brown fox jumps over the lazy dog, again and again, until it is tired"  # 79 tokens
BLOCK = 16


def engine(store, kind="attention", **config):
    return Harness(store=store.make, stub={"kind": kind}, cache={"block_tokens": BLOCK}, **config)


def finished(store, kind="attention"):
    """An engine that has answered one request, and what it answered."""
    harness = engine(store, kind)
    end = harness.run(PROMPT, max_tokens=12)
    harness.settle()
    return harness, end


def is_warm(store, end, kind="attention"):
    """Whether the next life has all of a finished row: the worker was killed without a word."""
    store.away = store.losing = False
    store.slow_s, store.refuse = 0.0, None
    harness = engine(store, kind)
    again = harness.run(harness.tokens(PROMPT) + list(end.generated), max_tokens=1)
    harness.settle()
    return again.cache.read_tokens == end.finish_len


def idle(harness, seconds):
    """Let time pass in steps of a second, as the engine looks up while it sleeps. Returns how many ticks had something to do."""
    busy = 0
    for _ in range(seconds):
        harness.clock.now += 1.0
        busy += harness.tick()
        harness.settle()
    return busy


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_saved_though_the_daemon_takes_a_second_to_answer(kind):
    store = MemoryStore(BLOCK)
    store.slow_s = 1.0
    _, end = finished(store, kind)
    assert is_warm(store, end, kind)


def test_a_sequence_that_pauses_for_its_save_waits_a_moment_only():
    store = MemoryStore(BLOCK)
    store.slow_s = 1.0
    harness, end = finished(store, "recurrent")
    assert harness.core.counters["saves_refused_daemon_away"] > 0, "at block ends"
    assert [meta.end for meta in store.of_kind(SegmentKind.SNAPSHOT)] == [end.finish_len], "at rest"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mishap", ["away", "slower than anybody waits", "losing", "full", "recovering"])
def test_a_finished_row_that_was_not_taken_is_offered_again_while_nothing_runs(kind, mishap):
    store = MemoryStore(BLOCK)
    store.away, store.losing = mishap == "away", mishap == "losing"
    store.slow_s = 60.0 if mishap.startswith("slower") else 0.0
    store.refuse = {"full": Refusal.NO_BUDGET, "recovering": Refusal.RECOVERING}.get(mishap)
    harness, end = finished(store, kind)
    idle(harness, 5)
    assert not store.kinds()
    store.away = store.losing = False
    store.slow_s, store.refuse = 0.0, None
    idle(harness, 60)
    assert is_warm(store, end, kind)
    assert store.num_open == store.num_leases == 0 and harness.drift() == []


def test_rows_are_offered_again_within_seconds_of_the_daemons_return():
    store = MemoryStore(BLOCK)
    store.away = True
    harness, end = finished(store)
    idle(harness, 600)
    store.away = False
    idle(harness, 4)
    assert is_warm(store, end)


def test_every_finished_row_gets_its_turn():
    store = MemoryStore(BLOCK)
    store.away = True
    harness = engine(store, n_cells=2048)
    for n in range(4):
        harness.run(f"{n} {PROMPT}", max_tokens=4)
    harness.settle()
    store.away = False
    idle(harness, 10)
    assert all(live.is_saved for live in harness.core.pool.cells)
    again = engine(store)
    assert [again.run(f"{n} {PROMPT}", max_tokens=1).cache.kind for n in range(4)] == ["exact"] * 4


def test_rows_are_offered_again_beside_a_request_that_never_ends():
    store = MemoryStore(BLOCK)
    store.away = True
    harness = engine(store)
    end = harness.run(PROMPT, max_tokens=12)
    store.away = False
    harness.submit("a short one", max_tokens=400)
    harness.until(lambda: harness.core.num_streaming == 1)
    for _ in range(5):
        harness.clock.now += 1.0
        harness.tick(5)
    assert harness.core.num_streaming == 1
    assert is_warm(store, end)


def test_a_full_tier_is_asked_seldom_and_nothing_spins():
    store = MemoryStore(BLOCK)
    store.refuse = Refusal.NO_BUDGET
    harness, _ = finished(store)
    before = store.num_reserved
    busy = idle(harness, 600)
    assert 0 < store.num_reserved - before <= 600 // 20 * 6
    assert busy <= 600 // 20 * 3


def test_saves_that_are_lost_again_and_again_are_not_all_that_is_done():
    store = MemoryStore(BLOCK)
    store.losing = True
    harness, end = finished(store)
    before = store.num_unpublished
    idle(harness, 600)
    assert 0 < store.num_unpublished - before <= (600 // 30 + 4) * 6
    store.losing = False
    idle(harness, 40)
    assert is_warm(store, end)


def test_nothing_is_asked_while_everything_is_stored():
    store = MemoryStore(BLOCK)
    harness, end = finished(store)
    before = store.num_reserved
    assert idle(harness, 600) == 0
    assert store.num_reserved == before
    assert is_warm(store, end)


def test_a_row_whose_beginning_was_evicted_meanwhile_is_stored_whole_again():
    store = MemoryStore(BLOCK)
    harness, _ = finished(store)
    for identity in list(store.stored):
        store.evict(identity)
    end = harness.run(PROMPT + " and what then?", max_tokens=20)
    harness.settle()
    idle(harness, 60)
    assert {meta.start for meta in store.of_kind(SegmentKind.BLOCK)} == set(range(0, end.finish_len - BLOCK, BLOCK))


def test_a_damaged_segment_is_saved_again_from_a_live_row_that_has_it():
    store = MemoryStore(BLOCK)
    harness, end = finished(store)
    second = sorted(store.of_kind(SegmentKind.BLOCK), key=lambda meta: meta.end)[1]
    store.evict((second.key, second.kind))
    store.explain = MissReason.CORRUPT
    harness.run(PROMPT + " and then it gets up, and goes on", max_tokens=1)
    idle(harness, 5)
    assert (second.key, second.kind) in store.stored
    store.explain = None
    assert is_warm(store, end)


def test_a_slow_daemon_holds_a_rescue_up_for_its_own_limit_only():
    """Cells are needed while the saves of a finished row wait for their room: the engine waits a moment, then drops the row."""
    store = MemoryStore(BLOCK)
    harness = engine(store, n_cells=128, n_ctx=120)
    store.manual = True
    harness.run("short and gated")
    harness.submit(PROMPT, max_tokens=1)
    harness.until(lambda: store.num_lookups == 1)
    store.deliver()
    harness.until(lambda: not harness.core.by_ref)
    assert harness.core.kv.waiting, "room was asked for, and nobody has answered"
    end = harness.run("x", max_tokens=100)
    assert len(end.generated) == 100
    store.deliver()
    harness.settle()
    assert store.num_open == 0 and harness.drift() == []
