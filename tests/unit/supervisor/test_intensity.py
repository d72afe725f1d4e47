"""When a process is started again, when it is given up, and how the pauses grow."""

from hypothesis import given
from hypothesis import strategies as st

from erllama_host.process import ExitCode
from erllama_host.supervisor.intensity import IMMEDIATE_RESTARTS, History, Limits


def test_three_ends_before_ready_are_enough():
    history = History()
    verdicts = [history.ended(float(at), -11, ready=False) for at in range(3)]
    assert [each.respawn for each in verdicts] == [True, True, False]
    assert 0 < verdicts[0].delay_s < verdicts[1].delay_s
    assert "3 times in a row" in verdicts[2].reason


def test_having_been_ready_starts_the_count_anew():
    history = History()
    for at in range(0, 400, 40):
        assert history.ended(float(at), -9, ready=at % 80 == 0).respawn


def test_a_load_failure_is_final():
    for code in (ExitCode.LOAD_FAILED, ExitCode.BAD_CONFIG):
        assert not History().ended(0.0, code, ready=False).respawn


def test_too_many_ends_in_the_window():
    history = History(Limits(max_restarts=2, within_s=10.0))
    assert [history.ended(at, -9, ready=True).respawn for at in (0.0, 1.0, 2.0)] == [True, True, False]
    slow = History(Limits(max_restarts=2, within_s=10.0))
    assert all(slow.ended(at * 6.0, -9, ready=True).respawn for at in range(20))


@given(st.integers(1, 40), st.floats(1.0, 600.0), st.floats(0.0, 0.2))
def test_a_crash_loop_is_always_given_up(max_restarts, within_s, life_share):
    """Also when every life lasts a while: the pauses must not stretch the ends beyond the window."""
    history, now = History(Limits(max_restarts, within_s)), 0.0
    for _ in range(max_restarts + 1):
        verdict = history.ended(now, -9, ready=True)
        now += verdict.delay_s + life_share * within_s / max_restarts
    assert not verdict.respawn


def test_the_first_restarts_come_at_once():
    history = History()
    delays = [history.ended(at / 10, -9, ready=True).delay_s for at in range(IMMEDIATE_RESTARTS + 3)]
    assert delays[:IMMEDIATE_RESTARTS] == [0.0] * IMMEDIATE_RESTARTS
    assert delays[IMMEDIATE_RESTARTS] > 0 and delays == sorted(delays)
