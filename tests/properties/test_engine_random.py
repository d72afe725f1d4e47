"""Any mixture of requests, cancellations, credit, evictions and cache mishaps, on the stub: every answer is the right one.

The stub's next token is a function of all tokens before it as its cells hold them, so a cell that is missing, foreign or out of
place changes the answer. Models whose state cannot be cut, and tight memory, are part of the game.
"""

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from cache_daemon.prefix_index import Prompt
from erllama_host.kv.reuse import Refusal, Reuse
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import pack_tokens
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from workers.commands import CancelRequest, EngineCall, Finished, Hold

BLOCK = 16
STEM = "the quick brown fox jumps over the lazy dog, and then it rests for a while. "
PROMPTS = [
    STEM,
    STEM + "Then it gets up.",
    STEM[:40] + "#" + STEM[:30],
    STEM[:48],
    STEM + STEM,
    "short",
    STEM[:16] + "other words altogether, unlike the first ones",
]


@cache
def truth(kind, index):
    """The first 40 tokens of the right answer."""
    harness = Harness(stub={"kind": kind})
    return harness.run(PROMPTS[index], max_tokens=40).generated


submit = st.tuples(
    st.just("submit"),
    st.integers(0, len(PROMPTS) - 1),
    st.integers(0, 40),
    st.sampled_from([None, None, "s", "t"]),
    st.sampled_from([0, 0, 0, 30]),
)
tick = st.tuples(st.just("tick"), st.integers(1, 12))
mishap = st.one_of(
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("hold"), st.integers(0, 20), st.booleans()),
    st.tuples(
        st.just("store"),
        st.sampled_from(["manual", "deliver", "away", "slow", "losing", "racing", "full", "fine", "fine"]),
    ),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 40.0])),
    st.tuples(st.just("session"), st.sampled_from(["fork", "end"])),
    st.tuples(st.just("evict")),
)
# Half of the steps are requests: most of what can go wrong needs several of them at a time.
action = st.integers(0, 9).flatmap(lambda dice: submit if dice < 5 else tick if dice < 8 else mishap)


def set_store(store, state):
    if state == "deliver":
        store.deliver()
        return
    store.manual, store.away, store.racing = state == "manual", state == "away", state == "racing"
    store.losing, store.slow_s = state == "losing", 1.0 if state == "slow" else 0.0
    store.refuse = Refusal.NO_BUDGET if state == "full" else None
    if state == "fine":
        store.deliver()


def carry_out(harness, store, step, number):
    match step:
        case ("submit", index, count, session, pin):
            harness.submit(
                PROMPTS[index], ref=f"{index}/{number}", max_tokens=count, session_id=session, pin_prefix=pin
            )
        case ("cancel", target):
            for ref in list(harness.core.by_ref)[target : target + 1]:
                harness.post(CancelRequest(ref, "client"))
        case ("hold", target, held):
            for ref in list(harness.core.by_ref)[target : target + 1]:
                harness.post(Hold(ref, held))
        case ("tick", count):
            harness.tick(count)
        case ("wait", seconds):
            harness.clock.now += seconds
        case ("evict",):
            harness.post(EngineCall(10_000 + number, "evict", c.Evict(timeout_s=0.0)))
        case ("session", "fork"):
            harness.post(EngineCall(10_000 + number, "fork", c.Session(session_id="s", new_session_id=f"f{number}")))
        case ("session", "end"):
            harness.post(EngineCall(10_000 + number, "end_session", c.Session(session_id="s")))
        case ("store", state):
            set_store(store, state)


def check_answers(harness, kind):
    for report in harness.reports:
        if isinstance(report, Finished):
            expected = truth(kind, int(report.ref.split("/")[0]))
            assert report.generated == expected[: len(report.generated)], report.ref
            assert tuple(harness.ids(report.ref)) == report.generated
            check_the_miss_is_explained(report)


def check_the_miss_is_explained(report):
    prompt, cache = PROMPTS[int(report.ref.split("/")[0])], report.cache
    complete = cache.read_tokens >= len(prompt) - 1
    if report.cancel_reason is None:
        assert (cache.miss_reason is None) == complete, cache
    assert cache.diverged_at is None or cache.read_tokens <= cache.diverged_at < len(prompt)


def check_nothing_is_unsaved(harness, store, kind):
    """Once the store takes everything again, it has every finished row, whatever happened to the saves before."""
    for _ in range(3):
        harness.clock.now += 40.0
        harness.settle()
    reuse = Reuse.CUT if kind == "attention" else Reuse.STATE
    for live in harness.core.pool.cells:
        if live.unsaveable or harness.core.kv.gate(len(live.tokens)):
            continue
        chain = live.space.chain(BLOCK)
        chain.extend(longer := pack_tokens([*live.tokens, 0]))
        match = store.index.match(Prompt(live.space.root, tuple(chain.block_keys), longer, chain.key(), reuse))
        assert match.hit_len >= len(live.tokens) == live.saved_end


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(action, min_size=12, max_size=40),
    kind=st.sampled_from(["attention", "recurrent", "hybrid"]),
    n_cells=st.sampled_from([200, 260, 1024]),
    n_seq_max=st.sampled_from([1, 3, 6]),
    lookup=st.sampled_from([0, 4]),
)
def test_every_answer_is_right_and_nothing_is_left_behind(steps, kind, n_cells, n_seq_max, lookup):
    store = MemoryStore(BLOCK, timeout_s=0.02)
    harness = Harness(
        store=store.make, stub={"kind": kind}, cache={"block_tokens": BLOCK}, n_ctx=220, n_cells=n_cells, n_batch=64,
        n_seq_max=n_seq_max, prompt_lookup=lookup, retained_cells_max=256,
    )  # fmt: skip
    for number, step in enumerate(steps):
        carry_out(harness, store, step, number)
    set_store(store, "fine")
    for ref in list(harness.core.by_ref) + [
        f"{step[1]}/{number}" for number, step in enumerate(steps) if step[0] == "submit"
    ]:
        harness.post(Hold(ref, False))
    harness.tick()
    for ref in list(harness.core.by_ref):
        harness.post(Hold(ref, False))
    harness.settle()
    check_answers(harness, kind)
    submitted = [f"{step[1]}/{number}" for number, step in enumerate(steps) if step[0] == "submit"]
    assert all(harness.end_of(ref) for ref in submitted), "every request ends"
    assert harness.drift() == []
    check_nothing_is_unsaved(harness, store, kind)
    assert store.num_leases == store.num_open == 0 and not harness.core.kv.waiting
    assert all(live.owner is None and not live.saves_open for live in harness.core.pool.cells)
