"""What is let go under memory pressure, in which order, and when it stops."""

from hypothesis import given
from hypothesis import strategies as st

from erllama_host.controller.placement import (
    MIB,
    Candidate,
    EvictModel,
    LetGo,
    Memory,
    Pressure,
    Room,
    ShrinkCache,
    room_for,
    unused,
)


def model(
    model_id: str, *, priority: int = 0, pending: int = 0, idle_s: float = 100.0, live: int = 0, **more
) -> Candidate:
    return Candidate(model_id, priority, pending, idle_s, live, **more)


def memory(share: float, name: str = "ram") -> Memory:
    return Memory(total_bytes=1000 * MIB, used_bytes=int(1000 * share) * MIB, name=name)


def test_nothing_happens_below_the_high_mark():
    pressure = Pressure(0.9, 0.8)
    assert pressure.next_relief([memory(0.89)], [model("a", live=5)], 500 * MIB) is None
    assert not pressure.is_high([memory(0.89)])


def test_order_is_cache_then_live_rows_then_models():
    pressure, models = Pressure(0.9, 0.8), [model("a", live=5), model("b", priority=1)]
    assert pressure.next_relief([memory(0.95)], models, 500 * MIB) == ShrinkCache(350 * MIB)
    assert pressure.next_relief([memory(0.95)], models, 0) == EvictModel("a")
    assert pressure.next_relief([memory(0.85)], models, 0) == LetGo("a"), (
        "between the marks it goes on, no model evicted twice"
    )
    assert pressure.next_relief([memory(0.85)], models[1:], 0) == LetGo("b")
    assert pressure.next_relief([memory(0.80)], models[1:], 0) is None
    assert pressure.next_relief([memory(0.85)], models[1:], 0) is None, "below the low mark it has ended"


def test_busy_models_stay():
    pressure = Pressure(0.9, 0.8)
    busy = [model("a", pending=1, live=9), model("b", idle_s=0.2)]
    assert pressure.next_relief([memory(0.99)], busy, 0) is None


def test_device_memory_is_not_relieved_by_the_cache():
    pressure = Pressure(0.9, 0.8)
    memories = [memory(0.2), memory(0.97, "gpu0")]
    assert pressure.next_relief(memories, [model("a", live=3)], 500 * MIB) == EvictModel("a")


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2), st.floats(0, 1000), st.integers(0, 3)), max_size=8),
    st.floats(0, 1),
)
def test_relief_ends_and_never_takes_a_busy_model(raw, share):
    models = {f"m{n}": model(f"m{n}", priority=p, pending=q, idle_s=i, live=c) for n, (p, q, i, c) in enumerate(raw)}
    pressure, cache_bytes, steps = Pressure(0.9, 0.5), 100 * MIB, 0
    while (relief := pressure.next_relief([memory(share)], models.values(), cache_bytes)) is not None:
        steps += 1
        assert steps < 50
        if isinstance(relief, ShrinkCache):
            assert 0 <= relief.target_bytes < cache_bytes
            cache_bytes = relief.target_bytes
        else:
            taken = models[relief.model_id]
            assert taken.pending == 0
            idle = [each for each in models.values() if each.pending == 0 and each.idle_s >= 1]
            assert isinstance(relief, EvictModel) or taken.priority == min(each.priority for each in idle)
            if isinstance(relief, LetGo):
                del models[relief.model_id]


def test_unused_models():
    models = [
        model("a", keep_alive_s=50.0),
        model("b", keep_alive_s=500.0),
        model("c"),
        model("d", pending=1, keep_alive_s=1.0),
    ]
    assert unused(models) == ["a"]


def test_room_for_a_load_comes_from_the_cache_first_then_from_idle_models():
    free = Memory(total_bytes=2000 * MIB, used_bytes=1000 * MIB)
    models = [(model("a", priority=1), 300 * MIB), (model("b"), 300 * MIB), (model("c", pending=1), 900 * MIB)]
    assert room_for(700 * MIB, free, 0, models) == Room()
    assert room_for(800 * MIB, free, 200 * MIB, models) == Room(56 * MIB)
    assert room_for(1000 * MIB, free, 200 * MIB, models) == Room(200 * MIB, ("b",))
    assert room_for(1400 * MIB, free, 100 * MIB, models) == Room(100 * MIB, ("b", "a"))
    assert room_for(1500 * MIB, free, 100 * MIB, models) is None, "busy models stay"
