"""The planner by examples; its properties are in tests/properties/."""

from workers.scheduler import Candidate, Limits, Rates, Rotation, Share, enough_rows, plan_rows, prefill_rows

DECODE = Candidate(1, 1, is_prefill=False)


def prompt(rows):
    return Candidate(rows, 1, is_prefill=True)


def test_decodes_and_a_prefill_share_a_step():
    plan = plan_rows([DECODE, prompt(1000), DECODE], Limits(512, 32, 64, 64))
    assert plan == [Share(0, 1, 1), Share(2, 1, 1), Share(1, 64, 0)]


def test_short_prompts_fill_a_step_together_and_long_enough_ones_do_not():
    assert plan_rows([prompt(30), prompt(30), prompt(30)], Limits(512, 32, 512, 64)) == [
        Share(0, 30, 1),
        Share(1, 30, 1),
        Share(2, 30, 1),
    ]
    assert plan_rows([prompt(64), prompt(64)], Limits(512, 32, 512, 64)) == [Share(0, 64, 1)]
    assert plan_rows([prompt(64), prompt(64)], Limits(512, 32, 512, 512)) == [Share(0, 64, 1), Share(1, 64, 1)]


def test_a_few_last_rows_are_taken_along_and_more_are_not():
    assert plan_rows([DECODE, prompt(70), prompt(9)], Limits(512, 32, 63, 64)) == [Share(0, 1, 1), Share(1, 70, 1)]
    assert plan_rows([DECODE, prompt(72)], Limits(512, 32, 63, 64)) == [Share(0, 1, 1), Share(1, 63, 0)]
    assert plan_rows([DECODE, prompt(40), prompt(30)], Limits(512, 32, 63, 64))[1:] == [
        Share(1, 40, 1),
        Share(2, 30, 1),
    ]
    assert plan_rows([prompt(64)], Limits(60, 32, 60, 64)) == [Share(0, 60, 0)], "a decode takes no more than it takes"


def test_drafts_are_left_out_where_they_do_not_fit_but_never_the_row_itself():
    drafting = Candidate(5, 5, is_prefill=False)
    assert plan_rows([drafting, drafting], Limits(512, 6, 512, 512)) == [Share(0, 5, 5), Share(1, 1, 1)]


def test_a_verification_takes_as_many_rows_with_logits_as_a_decode_can_have():
    verify = Candidate(100, 90, is_prefill=True)
    assert plan_rows([verify], Limits(512, 32, 512, 512)) == [Share(0, 42, 32)]


def test_measured_speed_sets_the_budget_and_what_is_enough():
    rates = Rates()
    assert prefill_rows(512, 0, rates) == 512 and prefill_rows(512, 3, rates) == 61 and enough_rows(512, rates) == 512
    rates.note(0, 4, 0.010)
    rates.note(512, 0, 0.512)
    assert prefill_rows(512, 3, rates) == 128 - 3, "139 would fit, whole tiles do not"
    assert 95 < enough_rows(512, rates) <= 100
    assert abs(rates.step_estimate_s(100) - 0.110) < 1e-9


def test_whoever_waited_longest_is_next_not_whoever_is_new():
    rotation = Rotation(1)
    turns = [rotation.pick(groups) for groups in ("a", "ab", "ab", "abc", "bcd", "cd")]
    assert turns == ["a", "b", "a", "b", "c", "d"]
