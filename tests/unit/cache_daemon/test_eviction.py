"""Which copy goes first, and that time passing needs no work."""

import math

from cache_daemon.entries import Entry
from cache_daemon.eviction import HALF_LIFE_S, Evictor, Standing, add_heat, heat_of_hit, rank_of, recompute_cost
from erllama_host.kv.segment import SegmentKind
from tests.support.rows import BLOCK, Row

ROW = Row(range(4 * BLOCK + 3))
FIRST, SECOND, *_ = ROW.blocks()


def entry(meta, used_s=0.0, payload_bytes=1000):
    return Entry(meta, payload_bytes, 0.0, "ram", heat_of_hit(used_s), used_s)


def test_heat_is_the_logarithm_of_decayed_hits():
    once = heat_of_hit(1000.0)
    assert math.isclose(add_heat(once, once), once + 1.0)
    # After a half-life a hit counts half, so one hit now and two then weigh the same as... two and a half of then.
    later = heat_of_hit(1000.0 + HALF_LIFE_S)
    assert math.isclose(2 ** (add_heat(add_heat(once, once), later) - once), 4.0)
    assert add_heat(0.0, 1e9) == 1e9


def test_recent_and_often_used_stays():
    assert rank_of(entry(FIRST, 0.0), 1, False) < rank_of(entry(FIRST, 60.0), 1, False)
    twice = entry(FIRST, 0.0)
    twice.heat = add_heat(twice.heat, heat_of_hit(0.0))
    assert rank_of(entry(FIRST, 0.0), 1, False) < rank_of(twice, 1, False)


def test_value_is_per_byte_and_deep_tokens_cost_more():
    assert rank_of(entry(FIRST, payload_bytes=2000), 1, False) < rank_of(entry(FIRST, payload_bytes=1000), 1, False)
    assert recompute_cost(FIRST) < recompute_cost(SECOND)
    assert recompute_cost(ROW.snapshot()) > recompute_cost(SECOND)


def test_classes_come_before_values():
    hot = heat_of_hit(1e9)
    logits, tail, copied, sole = entry(ROW.logits()), entry(ROW.tail()), entry(FIRST), entry(SECOND)
    for one in (logits, tail, copied):
        one.heat = hot
    tail.superseded = True
    worthless = [rank_of(logits, 1, False), rank_of(tail, 1, False), rank_of(entry(FIRST, 1e9), 1, True)]
    assert {rank[0] for rank in worthless} == {0}
    assert max(worthless) < rank_of(copied, 2, False) < rank_of(sole, 1, False)


class World:
    """Standings by hand."""

    def __init__(self, **ranks: float) -> None:
        self.standings = {self.name(n): Standing(True, False, (2, rank)) for n, rank in ranks.items()}
        self.evictor = Evictor(self.standings.get)
        for identity in self.standings:
            self.evictor.consider(identity)

    @staticmethod
    def name(name: str):
        return name.encode(), SegmentKind.BLOCK

    def set(self, name: str, rank: float, *, may_go: bool = True, held: bool = False) -> None:
        self.standings[self.name(name)] = Standing(may_go, held, (2, rank))

    def order(self) -> str:
        found = iter(self.evictor.next_victim, None)
        return "".join(key.decode() for key, _ in found)


def test_lowest_first():
    assert World(a=3, b=1, c=2).order() == "bca"


def test_a_rank_that_rose_unnoticed_is_found_out():
    world = World(a=1, b=2, c=3)
    world.set("a", 9)
    assert world.order() == "bca"


def test_a_rank_that_fell_must_be_considered():
    world = World(a=1, b=2, c=3)
    world.set("c", 0)
    world.evictor.consider(world.name("c"))
    assert world.order() == "cab"


def test_what_may_not_go_is_offered_when_it_returns():
    world = World(a=1, b=2)
    world.set("a", 1, may_go=False)
    assert world.order() == "b"
    world.set("a", 1)
    assert world.order() == ""
    world.evictor.returned(world.name("a"))
    assert world.order() == "a"


def test_held_goes_only_when_nothing_else_is_left():
    world = World(a=1, b=2, c=3)
    world.set("a", 1, held=True)
    world.set("b", 2, held=True)
    assert world.order() == "cab"


def test_what_is_gone_is_not_offered():
    world = World(a=1, b=2)
    del world.standings[world.name("a")]
    assert world.order() == "b"


def test_records_of_what_went_otherwise_are_not_kept_for_ever():
    world = World()
    for number in range(20_000):
        name = str(number % 7)
        world.set(name, float(number))
        world.evictor.consider(world.name(name))
        if number % 3 == 0:
            del world.standings[world.name(name)]
            world.evictor.forget(world.name(name))
    assert len(world.evictor) < 5000
    for number in range(7):
        world.set(str(number), float(number))
        world.evictor.consider(world.name(str(number)))
    assert world.order() == "0123456"
