"""What the cache does for requests, on the stub, whose answers show any cell that is missing, foreign or out of place."""

import pytest

from erllama_host.errors import ContextOverflow
from erllama_host.kv.reuse import Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import SamplingParams, pack_tokens
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from workers.commands import CancelRequest, Park
from workers.kv_types import Pending
from workers.sequence import Phase

KINDS = ["attention", "recurrent", "hybrid"]
PROMPT = (
    "the quick brown fox jumps over the lazy dog, again and again, until it is tired"  # 79 tokens: 4 blocks and a tail
)
BLOCK = 16


def engine(store=None, kind="attention", **config):
    stub = {"kind": kind, **config.pop("stub", {})}
    return Harness(store=store.make if store else None, stub=stub, cache={"block_tokens": BLOCK}, **config)


def cold(prompt, kind="attention", **fields):
    """The answer of an engine that has never seen anything."""
    harness = engine(kind=kind)
    ref = harness.submit(prompt, **fields)
    harness.finish(ref)
    return harness.end_of(ref).generated


def warm_store(kind="attention", prompt=PROMPT, **fields):
    """A store filled by one request of an earlier life."""
    store = MemoryStore(BLOCK)
    harness = engine(store, kind)
    harness.run(prompt, **{"max_tokens": 12, **fields})
    harness.settle()
    assert store.num_leases == store.num_open == 0
    return store


# --- live -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_continues_on_its_live_sequence(kind):
    harness = engine(kind=kind)
    first = harness.run(PROMPT, max_tokens=12)
    row = harness.tokens(PROMPT) + list(first.generated)
    second_prompt = row + harness.tokens(" and what then?")
    second = harness.run(second_prompt, max_tokens=12)
    assert second.cache.kind == "live" and second.cache.read_tokens == len(row) - 1
    assert second.stats.prefilled_tokens == len(second_prompt) - len(row) + 1
    assert second.generated == cold(second_prompt, kind, max_tokens=12)
    assert harness.drift() == []


def test_a_branch_shares_its_prefix_with_a_busy_sequence_and_leaves_it_alone():
    harness = engine()
    first = harness.submit(PROMPT + " one", max_tokens=60)
    harness.until(lambda: harness.core.num_streaming == 1)
    second = harness.submit(PROMPT + " two", max_tokens=60)
    harness.finish(first, second)
    assert harness.end_of(second).cache.live_tokens == len(PROMPT) + 1
    assert harness.end_of(first).generated == cold(PROMPT + " one", max_tokens=60)
    assert harness.end_of(second).generated == cold(PROMPT + " two", max_tokens=60)


@pytest.mark.parametrize("kind", KINDS)
def test_identical_prefixes_that_arrive_together_are_prefilled_once(kind):
    harness = engine(kind=kind, n_batch=32)
    prompts = [PROMPT + f" agent {n} has words of its own" for n in range(4)]
    refs = [harness.submit(prompt, max_tokens=10) for prompt in prompts]
    harness.finish(*refs)
    prefilled = sum(harness.end_of(ref).stats.prefilled_tokens for ref in refs)
    assert prefilled <= len(prompts[0]) + 3 * len(" agent 0 has words of its own")
    for ref, prompt in zip(refs, prompts, strict=True):
        assert harness.end_of(ref).generated == cold(prompt, kind, max_tokens=10)
    assert harness.drift() == []


def test_a_waiting_twin_goes_on_alone_when_the_other_is_cancelled():
    harness = engine(n_batch=32)
    first = harness.submit(PROMPT + " one", max_tokens=10)
    harness.tick()
    second = harness.submit(PROMPT + " two", max_tokens=10)
    harness.until(lambda: second in harness.core.by_ref and harness.core.by_ref[second].phase is Phase.WAITING)
    harness.post(CancelRequest(first, "client"))
    harness.finish(second)
    assert harness.end_of(second).generated == cold(PROMPT + " two", max_tokens=10)


def test_live_cache_is_bounded_while_something_decodes_and_kept_when_idle():
    store = MemoryStore(BLOCK)
    harness = engine(store, n_cells=2048, retained_cells_max=256)
    for n in range(6):
        harness.run(f"{n} " + PROMPT, max_tokens=4)
        harness.settle()
    idle = harness.core.pool.cells.retained
    assert idle > 32
    ref = harness.submit("a short one that decodes", max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.tick(3)
    assert harness.core.pool.cells.retained <= 256 // 8
    harness.finish(ref)
    again = harness.run("2 " + PROMPT, max_tokens=4)
    assert again.cache.kind == "exact", "what was let go is had again from the store"


def test_without_a_store_live_cache_may_hold_the_whole_bound():
    harness = engine(n_cells=2048, retained_cells_max=256)
    for n in range(6):
        harness.run(f"{n} " + PROMPT, max_tokens=4)
    ref = harness.submit("a short one that decodes", max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.tick(3)
    assert 128 < harness.core.pool.cells.retained <= 256
    harness.finish(ref)


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0.8, frequency_penalty=0.5)], ids=["greedy", "sampled"]
)
def test_an_exact_repeat_in_a_new_life_needs_no_decode_before_its_first_token(kind, params):
    store = warm_store(kind, params=params)
    harness = engine(store, kind)
    end = harness.run(PROMPT, max_tokens=12, params=params)
    assert end.cache.kind == "exact" and end.cache.read_tokens == len(PROMPT) and end.stats.prefilled_tokens == 0
    assert end.cache.tier_tokens == {"ram": len(PROMPT)} and end.cache.miss_reason is None
    assert end.generated == cold(PROMPT, kind, max_tokens=12, params=params)
    harness.settle()
    assert store.num_leases == store.num_open == 0 and harness.drift() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_continues_in_a_new_life(kind):
    store = MemoryStore(BLOCK)
    first = engine(store, kind)
    end = first.run(PROMPT, max_tokens=12)
    first.settle()
    row = first.tokens(PROMPT) + list(end.generated)
    prompt = row + first.tokens(" and what then?")
    harness = engine(store, kind)
    again = harness.run(prompt, max_tokens=12, parent_key=end.finish_key)
    assert again.cache.kind == "partial" and again.cache.read_tokens == end.finish_len == len(row) - 1
    assert again.generated == cold(prompt, kind, max_tokens=12)
    assert store.queries[-1].parent_key == end.finish_key and store.queries[-1].wait_ms == 500


def test_a_prompt_that_diverges_in_the_middle_loses_only_what_comes_after():
    store = warm_store()
    for at in (20, 32, 40, 63, 70):
        prompt = PROMPT[:at] + "#" + PROMPT[at + 1 :]
        harness = engine(store)
        end = harness.run(prompt, max_tokens=12)
        assert (end.cache.read_tokens, end.cache.diverged_at, end.cache.miss_reason) == (at, at, "never_seen")
        assert end.generated == cold(prompt, max_tokens=12)
        assert harness.drift() == []


def test_the_store_goes_on_where_the_live_match_ends():
    store = warm_store()
    harness = engine(store, policy={"min_tokens": 16})
    short = harness.run(PROMPT[:41] + " ends differently", max_tokens=4)
    harness.core.pool.drop(harness.core.pool.cells.idle()[0])
    live = harness.run(PROMPT[:25] + "#so", max_tokens=4)
    assert short.cache.read_tokens == 41 and live.cache.read_tokens == 25
    end = harness.run(PROMPT, max_tokens=12)
    assert end.cache.live_tokens and end.cache.tier_tokens["ram"] and end.cache.read_tokens == len(PROMPT)
    assert end.generated == cold(PROMPT, max_tokens=12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_saved_while_generating_and_a_crash_loses_little(kind):
    store = MemoryStore(BLOCK)
    harness = engine(store, kind)
    ref = harness.submit(PROMPT, max_tokens=60)
    harness.until(lambda: len(harness.ids(ref)) >= 50)
    harness.tick(3)
    delivered = tuple(harness.ids(ref))
    life = engine(store, kind)  # the first engine is gone without a word
    resumed = life.submit(PROMPT, max_tokens=60, delivered=delivered, attempt=1)
    end = life.finish(resumed)
    assert end.generated == cold(PROMPT, kind, max_tokens=60)
    assert end.cache.read_tokens >= (len(PROMPT) + 50) // BLOCK * BLOCK - BLOCK
    assert store.queries[-1].cautious


@pytest.mark.parametrize("kind", KINDS)
def test_answers_that_arrive_late_hold_nobody_up(kind):
    store = warm_store(kind)
    harness = engine(store, kind)
    other = harness.submit("somebody else", max_tokens=40)  # too short for the store
    harness.until(lambda: harness.core.num_streaming == 1)
    store.manual = True
    ref = harness.submit(PROMPT, max_tokens=12)
    harness.tick(2)
    before = len(harness.ids(other))
    harness.tick(10)
    assert len(harness.ids(other)) == before + 10 and not harness.ids(ref)
    store.manual = False
    store.deliver()
    harness.finish(ref, other)
    assert harness.end_of(ref).generated == cold(PROMPT, kind, max_tokens=12)
    assert harness.end_of(ref).cache.kind == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_that_is_away_makes_requests_cold_and_nothing_else(kind):
    store = MemoryStore(BLOCK)
    store.away = True
    harness = engine(store, kind)
    end = harness.run(PROMPT, max_tokens=40)
    assert end.cache.kind == "cold" and end.cache.miss_reason == "daemon_away"
    assert end.generated == cold(PROMPT, kind, max_tokens=40)
    harness.settle()
    assert store.kinds() == {} and harness.core.counters["saves_refused_daemon_away"] > 0


def test_a_full_tier_skips_saves_and_leaves_no_gap_in_a_chain():
    store = MemoryStore(BLOCK)
    harness = engine(store)
    store.refuse = Refusal.NO_BUDGET
    ref = harness.submit(PROMPT, max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.tick(2)
    store.refuse = None
    harness.finish(ref)
    harness.settle()
    ends = sorted(meta.end for meta in store.of_kind(SegmentKind.BLOCK))
    assert ends == list(range(BLOCK, len(PROMPT) + 29, BLOCK)), "the whole chain is offered again at the end"


@pytest.mark.parametrize("kind", KINDS)
def test_segments_that_are_overwritten_under_the_reader_are_a_miss(kind):
    store = warm_store(kind)
    store.racing = True
    harness = engine(store, kind)
    end = harness.run(PROMPT, max_tokens=12)
    assert end.cache.kind == "cold" and end.cache.miss_reason == "raced"
    assert end.generated == cold(PROMPT, kind, max_tokens=12)
    harness.settle()
    assert store.num_leases == 0 and harness.drift() == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", [Phase.LOOKUP, Phase.PREFILL, Phase.DECODE])
def test_cancelling_gives_leases_and_rooms_back(kind, phase):
    store = warm_store(kind)
    harness = engine(store, kind, n_batch=32)
    store.manual = True
    ref = harness.submit(PROMPT + " and more of it" * 5, max_tokens=50)

    def there():
        if phase is not Phase.LOOKUP:
            store.deliver()
        return ref in harness.core.by_ref and harness.core.by_ref[ref].phase is phase

    harness.until(there)
    harness.post(CancelRequest(ref, "client"))
    harness.tick()
    store.manual = False
    store.deliver()
    harness.settle()
    assert store.num_leases == store.num_open == 0 and harness.drift() == []


@pytest.mark.parametrize("config", [{"policy": {"enabled": False}}, {"policy": {"min_tokens": 500}}])
def test_the_policy_gates(config):
    store = MemoryStore(BLOCK)
    harness = engine(store, **config)
    end = harness.run(PROMPT, max_tokens=12)
    harness.settle()
    assert end.cache.miss_reason == "gated" and end.finish_key is None
    assert store.kinds() == {} and store.num_lookups == 0


def test_prompts_outside_the_cold_range_are_saved_at_their_end_only():
    store = MemoryStore(BLOCK)
    harness = engine(store, policy={"cold_max_tokens": 50}, n_batch=33)
    ref = harness.submit(PROMPT, max_tokens=2)
    harness.until(lambda: harness.core.counters["prefill_tokens"] >= 64)
    assert not store.of_kind(SegmentKind.BLOCK)
    harness.finish(ref)
    harness.settle()
    blocks = store.of_kind(SegmentKind.BLOCK)
    assert len(blocks) == 5 and {meta.reason for meta in blocks} <= {SaveReason.CONTINUED, SaveReason.FINISH}


def test_an_uncached_model_says_so():
    store = MemoryStore(BLOCK)
    harness = engine(store, "uncached")
    end = harness.run(PROMPT, max_tokens=4)
    assert end.cache.miss_reason == "uncached_model" and store.num_lookups == 0 and end.finish_key is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pin", [32, 41])
def test_a_pinned_prefix_is_saved_as_a_row_of_its_own(kind, pin):
    store = MemoryStore(BLOCK)
    harness = engine(store, kind)
    harness.run(PROMPT, max_tokens=4, pin_prefix=pin)
    harness.settle()
    pinned = [stored.meta for stored in store.stored.values() if stored.pinned]
    assert max(meta.end for meta in pinned) == pin
    again = engine(store, kind).run(PROMPT[:pin] + "?!", max_tokens=4)
    assert again.cache.read_tokens == pin


def test_pinning_what_is_stored_already_packs_nothing():
    store = warm_store()
    before = dict(store.kinds())
    harness = engine(store)
    harness.run(PROMPT, max_tokens=12, pin_prefix=32)
    harness.settle()
    assert store.kinds() == before
    assert sorted(one.meta.end for one in store.stored.values() if one.pinned) == [16, 32]


@pytest.mark.parametrize("kind", KINDS)
def test_evict_saves_and_gives_the_context_back(kind):
    store = MemoryStore(BLOCK)
    harness = engine(store, kind)
    first = harness.run(PROMPT, max_tokens=12)
    result = harness.call("evict", c.Evict())
    assert not result.deferred and result.saved_tokens == first.finish_len and not harness.core.backend.has_context
    again = harness.run(PROMPT, max_tokens=12)
    assert again.generated == first.generated and again.cache.kind == "exact"


def test_evict_beside_a_running_request_checkpoints_it_and_waits(monkeypatch):
    store = MemoryStore(BLOCK)
    harness = engine(store)
    ref = harness.submit(PROMPT, max_tokens=30)
    harness.until(lambda: len(harness.ids(ref)) > 5)
    result = harness.call("evict", c.Evict())
    assert result.deferred and result.saved_tokens >= len(PROMPT) and harness.core.backend.has_context
    store.manual = True  # the daemon answers whoever waits for it, and a little late all others
    wait = Pending.wait
    monkeypatch.setattr(Pending, "wait", lambda pending: store.deliver() or wait(pending))
    harness.finish(ref)
    harness.tick(2)
    assert not harness.core.backend.has_context
    store.manual = False
    store.deliver()
    end = harness.end_of(ref)
    assert end.generated == cold(PROMPT, max_tokens=30)
    again = engine(store).run(harness.tokens(PROMPT) + list(end.generated), max_tokens=0)
    assert again.cache.read_tokens == end.finish_len, "what was computed since is not lost"


def test_parking_saves_what_is_live():
    store = MemoryStore(BLOCK)
    harness = engine(store)
    ref = harness.submit(PROMPT, max_tokens=300)
    harness.until(lambda: len(harness.ids(ref)) > 5)
    harness.post(Park(1, "shutdown", finish_s=0.0, save_s=5.0))
    answer = harness.until(lambda: harness.answer_of(1))
    end = harness.end_of(ref)
    assert answer.result.complete and answer.result.saved_tokens == end.finish_len
    again = engine(store).run(harness.tokens(PROMPT) + list(end.generated), max_tokens=0)
    assert again.cache.read_tokens == end.finish_len


def test_shutdown_saves_and_the_model_stays_usable():
    store = MemoryStore(BLOCK)
    harness = engine(store)
    harness.run(PROMPT, max_tokens=12)
    assert harness.call("shutdown", c.Save()).complete
    assert harness.run(PROMPT, max_tokens=12).cache.kind == "live"


def test_a_preempted_request_is_restored_from_what_was_saved():
    store = MemoryStore(BLOCK)
    harness = engine(store, n_cells=256, n_ctx=160, n_batch=64)
    prompts = [f"{n} " + PROMPT for n in range(3)]
    refs = [harness.submit(prompt, max_tokens=60) for prompt in prompts]
    harness.finish(*refs)
    assert harness.core.counters["preemptions"] > 0 and harness.core.counters["saves_evict"] > 0
    for ref, prompt in zip(refs, prompts, strict=True):
        assert harness.end_of(ref).generated == cold(prompt, max_tokens=60)
    harness.settle()
    assert harness.drift() == [] and store.num_leases == store.num_open == 0


@pytest.mark.parametrize("kind", KINDS)
def test_cached_prefix_len_counts_live_and_stored(kind):
    store = warm_store(kind)
    harness = engine(store, kind)
    body = c.CachedPrefix(tokens=pack_tokens(harness.tokens(PROMPT + " more")))
    assert harness.call("cached_prefix_len", body).length == len(PROMPT)
    end = harness.run(PROMPT + " more", max_tokens=4)
    row = harness.tokens(PROMPT + " more") + list(end.generated)
    assert harness.call("cached_prefix_len", c.CachedPrefix(tokens=pack_tokens(row))).length == end.finish_len
    assert store.num_leases == 0


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_keeps_its_sequence_over_the_bound_until_it_ends():
    store = MemoryStore(BLOCK)
    harness = engine(store, n_cells=2048, retained_cells_max=800)
    harness.run(PROMPT, max_tokens=4, session_id="s")
    for n in range(4):
        harness.run(f"{n} other requests come and go, long enough to be saved", max_tokens=20)
        harness.settle()
    assert harness.core.pool.cells.in_session("s") is not None
    assert harness.run(PROMPT + " go on", max_tokens=4, session_id="s").cache.kind == "live"
    assert harness.call("end_session", c.Session(session_id="s")) == c.Ok()
    assert harness.core.pool.cells.in_session("s") is None
    harness.call("end_session", c.Session(session_id="s"))


def test_an_idle_pin_is_reclaimed_under_pressure_after_a_save():
    store = MemoryStore(BLOCK)
    harness = engine(store, n_cells=128, n_ctx=120, policy={"min_tokens": 16})
    pinned = harness.run(PROMPT, max_tokens=4, session_id="s")
    harness.run("a request that needs nearly all the cells there are, so the pin has to go", max_tokens=40)
    assert harness.core.pool.cells.in_session("s") is None
    again = harness.run(PROMPT, max_tokens=4, session_id="s")
    assert again.cache.kind == "exact" and again.generated == pinned.generated


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_goes_its_own_way(kind):
    harness = engine(kind=kind)
    first = harness.run(PROMPT, max_tokens=8, session_id="s")
    row = harness.tokens(PROMPT) + list(first.generated)
    name = harness.call("fork", c.Session(session_id="s", new_session_id="t")).session_id
    assert name == "t"
    left, right = row + harness.tokens(" left"), row + harness.tokens(" right")
    one = harness.submit(left, max_tokens=10, session_id="s")
    two = harness.submit(right, max_tokens=10, session_id="t")
    harness.finish(one, two)
    assert harness.end_of(one).generated == cold(left, kind, max_tokens=10)
    assert harness.end_of(two).generated == cold(right, kind, max_tokens=10)
    assert {harness.end_of(ref).cache.kind for ref in (one, two)} == {"live"}


def test_others_neither_take_a_pinned_sequence_over_nor_lengthen_it():
    harness = engine()
    first = harness.run(PROMPT, max_tokens=4, session_id="s")
    row = harness.tokens(PROMPT) + list(first.generated)
    end = harness.run([*row, *harness.tokens(" and more")], max_tokens=4)
    assert end.cache.kind == "live"
    assert len(harness.core.pool.cells.in_session("s").tokens) == first.finish_len


def test_cells_without_their_snapshot_are_never_reused():
    store = warm_store("hybrid")
    harness = engine(store, "hybrid")
    store.manual = True
    ref = harness.submit(PROMPT, max_tokens=12)
    harness.until(lambda: ref in harness.core.by_ref and harness.core.by_ref[ref].phase is Phase.LOOKUP)
    store.manual = False
    store.deliver()
    request, kv = harness.core.by_ref[ref], harness.core.kv
    assert kv.lookup_done(request)
    request.enter(Phase.RESTORING)
    restorer = kv._restorer
    whole = restorer._choose

    def first_segment_only(*arguments):
        return whole(*arguments)[:1]

    restorer._choose = first_segment_only
    harness.finish(ref)
    restorer._choose = whole
    end = harness.end_of(ref)
    assert end.cache.kind == "cold" and end.generated == cold(PROMPT, "hybrid", max_tokens=12)
    again = harness.run(PROMPT + " more", max_tokens=12)
    assert again.generated == cold(PROMPT + " more", "hybrid", max_tokens=12)


def test_a_row_that_is_stored_but_has_no_room_is_refused_like_any_other():
    store = warm_store()
    harness = engine(store, n_cells=64)
    end = harness.run(PROMPT, max_tokens=4)
    assert isinstance(end.error, ContextOverflow) and harness.core.counters["restores_no_cells"] == 1
    harness.settle()
    assert store.num_leases == 0 and harness.drift() == []
    assert harness.run(PROMPT[:40], max_tokens=4).cache.read_tokens == 39


def test_a_model_that_the_daemon_refuses_runs_uncached_and_says_why():
    store = MemoryStore(BLOCK)
    store.refused = "blocks of another length"
    harness = engine(store)
    end = harness.run(PROMPT, max_tokens=4)
    assert (end.cache.miss_reason, end.finish_key) == ("uncached_model", None)
    harness.tick()
    assert harness.snapshots[-1].cache_refused == "blocks of another length"
    store.refused = ""
    assert harness.run(PROMPT, max_tokens=4).finish_key is not None


# --- explained --------------------------------------------------------------------------------------------------------


def test_tokens_too_few_to_be_fetched_are_a_miss_with_that_reason():
    store = warm_store()
    harness = engine(store)
    harness.run(PROMPT[:70], max_tokens=1)
    store.index.remove(next(identity for identity in store.stored if identity[1] is SegmentKind.LOGITS))
    asked = store.num_lookups
    far = harness.run(PROMPT, max_tokens=1)
    assert (far.cache.kind, far.cache.read_tokens, far.cache.miss_reason) == ("live", 70, "too_few")
    assert store.num_lookups == asked + 1, "it was found, and left there"
    near = harness.run(PROMPT + "!!!", max_tokens=1)
    assert (near.cache.kind, near.cache.miss_reason) == ("live", "too_few") and store.num_lookups == asked + 1


def test_where_a_prompt_parts_from_a_live_row_is_told():
    harness = engine()
    harness.run(PROMPT, max_tokens=4)
    beside = harness.run(PROMPT[:40] + "#" + PROMPT[41:], max_tokens=4)
    assert (beside.cache.read_tokens, beside.cache.diverged_at, beside.cache.miss_reason) == (40, 40, "gated")
    beyond = harness.run(PROMPT + " more of it, and then some", max_tokens=4)
    assert beyond.cache.diverged_at in (None, len(PROMPT))
