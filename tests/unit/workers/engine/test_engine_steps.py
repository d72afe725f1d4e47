"""What is put into one step, and when a step waits: prompts that come together, and prompts beside streams; on the stub."""

import pytest

from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from workers.scheduler import GATHER_S, LAST_ROWS, TILE_ROWS
from workers.sequence import Phase

BLOCK = 16
SHORT = "too short to be looked up"
LONG = "long enough to be looked up in the store first, "
SLOW_ROW_S = 0.01


def engine(store=None, row_s=SLOW_ROW_S, **config):
    """An engine for which a prefill row takes `row_s`, as far as it knows, and that notes the rows of its steps in `steps`."""
    harness = Harness(store=store.make if store else None, cache={"block_tokens": BLOCK}, **config)
    harness.core.rates.prefill_row_s = row_s
    harness.core.rates.note = lambda *_: None
    harness.steps = []
    decode = harness.core.backend.decode

    def spy(rows):
        harness.steps.append(len(rows))
        return decode(rows)

    harness.core.backend.decode = spy
    return harness


def gathering(row_s=SLOW_ROW_S):
    """Two requests that have just come: one is ready to be computed, the other waits for the store's answer."""
    store = MemoryStore(BLOCK)
    store.manual = True
    harness = engine(store, row_s)
    refs = harness.submit(SHORT, max_tokens=2), harness.submit(LONG, max_tokens=2)
    harness.tick()
    assert [harness.core.by_ref[ref].phase for ref in refs][1] is Phase.LOOKUP
    return harness, store, refs


# --- waiting for company ----------------------------------------------------------------------------------------------


def test_a_prompt_waits_a_moment_for_one_that_is_being_looked_up_and_they_share_a_step():
    harness, store, refs = gathering()
    assert not harness.steps
    store.deliver()
    harness.tick()
    assert harness.steps == [len(SHORT) + len(LONG)]
    harness.finish(*refs)


def test_it_does_not_wait_for_longer_than_a_moment():
    harness, store, refs = gathering()
    harness.until(lambda: harness.steps)
    assert harness.steps == [len(SHORT)] and harness.clock.now - 1000.0 < GATHER_S + 0.003
    harness.until(lambda: harness.end_of(refs[0]))
    store.deliver()
    harness.finish(refs[1])


@pytest.mark.parametrize("row_s", [0.0, 1e-5], ids=["unknown", "fast"])
def test_a_step_that_takes_no_time_waits_for_nobody(row_s):
    harness, store, refs = gathering(row_s)
    assert harness.steps == [len(SHORT)]
    store.deliver()
    harness.finish(*refs)


def test_a_prompt_that_fills_a_step_waits_for_nobody():
    store = MemoryStore(BLOCK)
    store.manual = True
    harness = engine(store, policy={"min_tokens": 100})
    harness.submit("x" * TILE_ROWS, max_tokens=2)
    harness.submit(LONG * 3, max_tokens=2)
    harness.tick()
    assert harness.steps == [TILE_ROWS]


def test_streams_do_not_wait_for_a_lookup():
    store = MemoryStore(BLOCK)
    store.manual = True
    harness = engine(store)
    harness.submit(SHORT, max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.submit("another", max_tokens=2)
    harness.submit(LONG, max_tokens=2)
    harness.steps.clear()
    harness.tick()
    assert harness.steps == [1 + len("another")]


# --- beside streams ---------------------------------------------------------------------------------------------------


def beside_a_stream(*lengths):
    """The steps from when prompts of these lengths come to a running stream until all are computed."""
    harness = engine(n_seq_max=4)
    harness.submit("stream", max_tokens=100)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.steps.clear()
    refs = [harness.submit(chr(97 + n) * length, max_tokens=0) for n, length in enumerate(lengths)]
    harness.finish(*refs)
    return harness.steps


def test_steps_beside_a_stream_fill_whole_tiles():
    assert beside_a_stream(4 * TILE_ROWS) == [TILE_ROWS] * 3 + [TILE_ROWS + 4]


def test_a_tile_is_filled_up_by_the_next_prompt():
    assert beside_a_stream(TILE_ROWS - 11, 30) == [TILE_ROWS, 1 + 30 - 10]


def test_the_last_rows_of_a_prompt_do_not_make_a_step_of_their_own():
    most = TILE_ROWS - 1 + LAST_ROWS
    assert beside_a_stream(most) == [1 + most]
    assert beside_a_stream(most + 1) == [TILE_ROWS, 1 + LAST_ROWS + 1]


# --- live cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True], ids=["computed", "restored"])
def test_live_cache_goes_before_cells_are_filled_with_a_prompt(stored):
    """The lower the cells of a prompt lie, the cheaper are its own rows: llama.cpp attends up to the highest used cell."""
    harness = engine(MemoryStore(BLOCK), n_cells=2048, retained_cells_max=256)
    cells, seen = harness.core.pool.cells, []
    for name in ("first ", "other "):
        harness.run(name + LONG * 4, max_tokens=0)
        harness.settle()
    assert [bytes(live.tokens.tobytes()[::4][:5]) for live in cells] == [b"other"] and cells.retained > 128

    def spied(function):
        def spy(*arguments):
            seen.append(cells.retained)
            return function(*arguments)

        return spy

    harness.core.backend.decode = spied(harness.core.backend.decode)
    harness.core.backend.restore = spied(harness.core.backend.restore)
    end = harness.run(("first " if stored else "third ") + LONG * 4, max_tokens=1)
    assert end.cache.kind == ("exact" if stored else "cold")
    assert seen[0] == 0, "live cells when the first cell of this one was filled"
