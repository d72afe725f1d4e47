"""The planner, for any requests and limits: no row lost, duplicated, over budget or starved."""

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.scheduler import (
    AGING_S,
    GATHER_S,
    GATHER_SHARE,
    LAST_ROWS,
    MIN_PREFILL_ROWS,
    TILE_ROWS,
    Candidate,
    Limits,
    Rates,
    Rotation,
    gathering_s,
    plan_rows,
    prefill_rows,
    urgency,
)

decoding = st.integers(1, 6).map(lambda rows: Candidate(rows, rows, is_prefill=False))
prefilling = st.tuples(st.integers(1, 300), st.integers(0, 40)).map(
    lambda pair: Candidate(pair[0], min(pair), is_prefill=True)
)
candidates = st.lists(st.one_of(decoding, prefilling), min_size=1, max_size=12)
limits = st.tuples(st.integers(1, 200), st.integers(1, 48), st.integers(1, 200), st.integers(1, 200)).map(
    lambda four: Limits(four[0], min(four[1], four[0]), four[2], four[3])
)


@settings(max_examples=150, deadline=None)
@given(candidates, limits)
def test_a_plan_keeps_every_limit_and_serves_in_order(wanted, limit):
    shares = plan_rows(wanted, limit)
    assert len({share.index for share in shares}) == len(shares)
    assert sum(share.num_rows for share in shares) <= limit.max_rows
    assert sum(share.num_outputs for share in shares) <= limit.max_outputs
    prefill = [share for share in shares if wanted[share.index].is_prefill]
    assert sum(share.num_rows for share in prefill) <= limit.prefill_rows + LAST_ROWS
    if sum(share.num_rows for share in prefill) > limit.prefill_rows:
        assert prefill[-1].num_rows == wanted[prefill[-1].index].rows_left, "more than its share only to be finished"
    for share in shares:
        one = wanted[share.index]
        assert 0 < share.num_rows <= one.rows_left
        # Logits are wanted of exactly those rows that lie in the last `outputs_last`; a decode gives its first row's.
        if one.is_prefill:
            assert share.num_outputs == max(0, share.num_rows - (one.rows_left - one.outputs_last))
        else:
            assert share.num_outputs == share.num_rows
    # One prefill is finished before the next is begun.
    unfinished = [share for share in prefill if share.num_rows < wanted[share.index].rows_left]
    assert sum(share.num_rows for share in prefill[:-1]) < limit.enough_rows
    outputs_left = limit.max_outputs - sum(share.num_outputs for share in shares)
    assert len(unfinished) <= 1 or outputs_left == 0
    # A few last rows are not left to a step of their own where there is room for them.
    rows_left = limit.max_rows - sum(share.num_rows for share in shares)
    for share in unfinished:
        left = wanted[share.index].rows_left - share.num_rows
        assert left > min(LAST_ROWS, rows_left) or wanted[share.index].outputs_last > outputs_left


@settings(max_examples=150, deadline=None)
@given(candidates, limits)
def test_something_is_always_planned_and_decodes_come_first(wanted, limit):
    shares = plan_rows(wanted, limit)
    assert shares
    num_decoding = sum(not one.is_prefill for one in wanted)
    served = sum(not wanted[share.index].is_prefill for share in shares)
    assert served == num_decoding or served >= min(limit.max_rows, limit.max_outputs) // 6


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 30)), min_size=1, max_size=6), limits)
def test_every_request_is_computed_to_its_end_row_by_row(requests, limit):
    """A run of plans: each request's prompt rows, then its answer's, all of them once."""
    left = {index: [prompt, answer] for index, (prompt, answer) in enumerate(requests)}
    for _ in range(20_000):
        if not left:
            break
        order = list(left)
        wanted = [
            Candidate(left[index][0], 1, is_prefill=True) if left[index][0] else Candidate(1, 1, is_prefill=False)
            for index in order
        ]
        for share in plan_rows(wanted, limit):
            prompt, answer = left[order[share.index]]
            if prompt:
                prompt -= share.num_rows
                answer -= share.num_outputs
            else:
                answer -= share.num_rows
            assert prompt >= 0 and answer >= 0
            left[order[share.index]] = [prompt, answer]
        left = {index: rest for index, rest in left.items() if rest != [0, 0]}
    assert not left


speeds = st.lists(st.tuples(st.integers(0, 512), st.integers(0, 64), st.floats(0, 100)), max_size=20)


def rates_after(measured):
    rates = Rates()
    for num_prefill, num_decode, seconds in measured:
        rates.note(num_prefill, num_decode, seconds)
    return rates


@settings(deadline=None)
@given(st.integers(1, 2048), st.integers(0, 300), speeds)
def test_prefill_budgets_are_full_when_nobody_streams_and_else_fill_whole_tiles(max_rows, beside, measured):
    rows = prefill_rows(max_rows, beside, rates_after(measured))
    assert min(MIN_PREFILL_ROWS, max_rows) <= rows <= max_rows
    assert rows == max_rows or (beside and (beside + rows) % TILE_ROWS == 0)


@settings(deadline=None)
@given(st.integers(0, 2048), speeds)
def test_a_step_is_put_off_by_a_small_part_of_what_it_takes(num_prefill, measured):
    rates = rates_after(measured)
    assert 0 <= gathering_s(num_prefill, rates) <= GATHER_S
    assert gathering_s(num_prefill, rates) * GATHER_SHARE <= rates.step_estimate_s(num_prefill) * 1.001


def test_the_budget_follows_the_measured_speed():
    fast, slow = Rates(), Rates()
    for _ in range(50):
        fast.note(0, 4, 0.005)
        fast.note(512, 4, 0.105)
        slow.note(0, 4, 0.1)
        slow.note(64, 4, 1.0)
    assert prefill_rows(4096, 4, fast) > 512 and prefill_rows(4096, 4, slow) == TILE_ROWS - 4


@settings(deadline=None)
@given(st.integers(-100, 100), st.integers(-100, 100), st.floats(0, 1e4), st.floats(0, 1e4))
def test_whoever_waits_long_enough_becomes_most_urgent(low, high, early, late):
    wait_s = (abs(high - low) + 2) * AGING_S
    arrived, newcomer = min(early, late), min(early, late) + wait_s
    assert urgency(low, arrived, newcomer) < urgency(max(low, high), newcomer, newcomer)


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=200), st.integers(1, 8))
def test_sets_take_turns_and_none_waits_for_long(groups_per_tick, turn):
    rotation = Rotation(turn)
    waiting: dict[int, int] = {}
    for groups in groups_per_tick:
        chosen = rotation.pick(sorted(groups))
        assert chosen in groups
        waiting = {group: waiting.get(group, 0) + 1 for group in groups if group != chosen}
        assert all(ticks <= turn * 5 for ticks in waiting.values())
