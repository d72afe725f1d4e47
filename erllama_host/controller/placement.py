"""What to let go when memory runs short, what nobody uses any more, and whether a load fits. Pure.

Order of relief: cached rows first (they cost a prefill), then live rows of idle models (they cost a restore), then idle models
(they cost a load); least valuable first, one thing at a time, looking again in between. It starts above the high mark and ends
below the low one, so that it does not flutter.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MIB = 1 << 20
LOAD_MARGIN_BYTES = 256 * MIB
SMALLEST_SHRINK_BYTES = 16 * MIB
IDLE_BEFORE_RELIEF_S = 1.0


@dataclass(frozen=True)
class Memory:
    """One kind of memory: of the machine (or its cgroup), or of one device."""

    total_bytes: int
    used_bytes: int
    name: str = "ram"

    @property
    def share(self) -> float:
        """Of it in use, 0 to 1."""
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return max(0, self.total_bytes - self.used_bytes)


@dataclass(frozen=True)
class Candidate:
    """A model as far as relief is concerned. `pending`: requests queued or running."""

    model_id: str
    priority: int
    pending: int
    idle_s: float
    live_cells: int
    keep_alive_s: float | None = None


@dataclass(frozen=True)
class ShrinkCache:
    """Let cached rows go until `target_bytes` of shared memory are left."""

    target_bytes: int


@dataclass(frozen=True)
class EvictModel:
    """Save the live rows of a model and give back its context."""

    model_id: str


@dataclass(frozen=True)
class LetGo:
    """Unload a model; the next request brings it back."""

    model_id: str


Relief = ShrinkCache | EvictModel | LetGo


class Pressure:
    """Remembers whether relief is under way. Owner: the controller's memory task."""

    def __init__(self, high: float, low: float) -> None:
        self._high = high
        self._low = low
        self._relieving = False
        self._evicted: set[str] = set()

    def is_high(self, memories: Iterable[Memory]) -> bool:
        """Whether there may be something to let go, so that it is worth asking what the cache holds."""
        return self._relieving or _worst(memories).share > self._high

    def next_relief(self, memories: Iterable[Memory], models: Iterable[Candidate], cache_bytes: int) -> Relief | None:
        """The next thing to let go, or None. `cache_bytes`: shared memory the cache uses."""
        worst = _worst(memories)
        if worst.share > self._high:
            self._relieving = True
        if worst.share <= self._low:
            self._relieving = False
            self._evicted.clear()
        if not self._relieving:
            return None
        excess_bytes = worst.used_bytes - int(self._low * worst.total_bytes)
        if worst.name == "ram" and cache_bytes >= SMALLEST_SHRINK_BYTES:
            return ShrinkCache(max(0, cache_bytes - max(excess_bytes, SMALLEST_SHRINK_BYTES)))
        idle = sorted(filter(is_idle, models), key=value)
        for model in idle:
            if model.live_cells and model.model_id not in self._evicted:
                self._evicted.add(model.model_id)
                return EvictModel(model.model_id)
        return LetGo(idle[0].model_id) if idle else None


def _worst(memories: Iterable[Memory]) -> Memory:
    return max(memories, key=lambda memory: memory.share, default=Memory(0, 0))


def is_idle(model: Candidate) -> bool:
    """Whether nobody waits for it."""
    return model.pending == 0 and model.idle_s >= IDLE_BEFORE_RELIEF_S


def value(model: Candidate) -> tuple[int, float, str]:
    """Sort key, least valuable first: by priority, then the longest idle."""
    return (model.priority, -model.idle_s, model.model_id)


def unused(models: Iterable[Candidate]) -> list[str]:
    """Models idle for longer than their `keep_alive_s`."""
    return [
        model.model_id
        for model in models
        if model.keep_alive_s is not None and model.pending == 0 and model.idle_s > model.keep_alive_s
    ]


@dataclass(frozen=True)
class Room:
    """How to make room for a load: shrink the cache by `shrink_bytes`, let `models` go. All empty: it fits as it is."""

    shrink_bytes: int = 0
    models: tuple[str, ...] = ()


def room_for(
    needed_bytes: int, memory: Memory, cache_bytes: int, models: Iterable[tuple[Candidate, int]]
) -> Room | None:
    """What must go so that a load of `needed_bytes` fits with a margin; None when not even that would do.

    Args:
        models: those that serve, with the bytes each would give back.
    """
    missing = needed_bytes + LOAD_MARGIN_BYTES - memory.free_bytes
    if missing <= 0:
        return Room()
    shrink = min(missing, cache_bytes)
    missing -= shrink
    gone: list[str] = []
    for model, num_bytes in sorted(models, key=lambda pair: value(pair[0])):
        if missing > 0 and is_idle(model):
            gone.append(model.model_id)
            missing -= num_bytes
    return Room(shrink, tuple(gone)) if missing <= 0 else None
