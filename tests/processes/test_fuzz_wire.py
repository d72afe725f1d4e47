"""A short attack on a running host; `python -m tests.fuzz` is the long one."""

import pytest

from tests.fuzz import attack
from tests.support.hosts import running_host


@pytest.mark.process
def test_hostile_messages_disturb_nobody() -> None:
    with running_host() as host:
        outcome = attack(host.endpoint, cases=1500, seed=20)
    assert outcome.problems == []
    assert outcome.sent == 1500
    # Most kinds answer; those that are fire and forget do not.
    assert outcome.replies.total() > 500
