"""A Pending is settled once: by its value or by its deadline, whichever comes first."""

import time

from workers.kv_types import Pending


def test_value_in_time():
    woken = []
    pending = Pending(time.monotonic() + 60, lambda: "late", lambda: woken.append(1))
    assert not pending.done()
    assert pending.resolve("value") and woken == [1]
    assert pending.done() and pending.result() == "value" and pending.wait() == "value"
    assert not pending.resolve("again") and pending.result() == "value"


def test_deadline_wins_and_a_late_value_is_given_back():
    pending = Pending(time.monotonic() - 1, lambda: "fallback")
    assert pending.done() and pending.result() == "fallback"
    assert not pending.resolve("value")
    assert Pending(time.monotonic() - 1, lambda: "fallback").wait() == "fallback"
