"""A soak of one minute: random kills under streams, nothing lost. The long one is `python -m tests.soak`."""

import argparse

import pytest

from tests import soak

pytestmark = pytest.mark.process


@pytest.mark.timeout(600)
def test_a_minute_of_kills_loses_nothing():
    arguments = argparse.Namespace(
        minutes=1.0, streams=4, kill_every=3.0, tokens=100, model=None, circusd=True, seed=20
    )
    tally = soak.run(arguments)
    print(soak.table(tally))
    assert tally.problems == []
    assert tally.counts["streams"] >= 4 and sum(n for name, n in tally.counts.items() if name.startswith("SIG")) >= 2
