"""Sequences of the stub when their ids run out."""

from array import array

import pytest

from tests.support.backends import feed, open_stub_backend
from workers.cells import Match
from workers.namespace import Namespace
from workers.pool import Pool

SPACE = Namespace(bytes(32), "F16", bytes(32)).space([])


class Filled:
    """A pool whose every id is taken: by busy sequences, and by idle ones that no store has."""

    def __init__(self, *, kind="attention", num_slots=2, num_idle=1):
        self.pool = pool = Pool(open_stub_backend(kind=kind, config={"n_seq_max": num_slots, "n_cells": 2048}))
        self.rescued = []
        pool.set_rescue(self.rescued.append)
        self.lives = []
        while pool.cells.free_ids:
            tokens = [len(self.lives) % 250] * 3
            self.lives.append(pool.open(SPACE, "busy", 0.0))
            feed(pool.backend, self.lives[-1].seq, tokens)
            pool.grew(self.lives[-1], array("I", tokens))
        self.idle = self.lives[-num_idle:]
        for live in self.idle:
            pool.rest(live, 0.0)


def test_what_no_store_has_is_saved_before_a_newcomer_takes_its_id():
    filled = Filled(num_idle=3)
    filled.idle[1].saved_end = 3
    filled.pool.open(SPACE, "new", 1.0)
    assert filled.rescued == [] and len(filled.pool.cells) == len(filled.lives), "what is stored goes first"
    filled.pool.open(SPACE, "new", 1.0)
    assert filled.rescued == [filled.idle[0]]


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_the_only_idle_sequence_can_be_had_although_its_state_is_still_to_be_saved(kind):
    filled = Filled(kind=kind, num_slots=256)
    (source,) = filled.idle
    source.saves_open = 1
    taken = filled.pool.take(Match(source, 3), "new", None, 1.0)
    assert taken is (source if kind == "attention" else None)
    if taken is None:
        assert filled.pool.open(SPACE, "new", 1.0).owner == "new" and filled.rescued == [source]
    assert filled.pool.drift() == []
