"""What the engine and the cache client hand each other.

Owner of each object: the engine thread, once it is delivered. A `Pending` is the only thing both threads touch.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from erllama_host.kv.reuse import MissReason, Refusal, Reuse
from erllama_host.kv.segment import SegmentKind, SegmentMeta

T = TypeVar("T")


class Pending(Generic[T]):
    """A value that arrives later, and at the latest at its deadline: then it is the fallback (a miss, a refusal).

    The engine polls `done()` every tick and never waits. Whichever comes first, value or deadline, wins for good.
    """

    def __init__(
        self, deadline_s: float, fallback: Callable[[], T], on_value: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            deadline_s: on the `time.monotonic` clock.
            fallback: makes the value of a call that was not answered in time; must be quick.
            on_value: called in the delivering thread once a value is there.
        """
        self.deadline_s = deadline_s
        self._fallback = fallback
        self._on_value = on_value
        self._lock = threading.Lock()
        self._is_ready = False
        # Opened once a value is there: one is made per call, and a bare lock costs a quarter of a threading.Event.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._value: T | None = None

    def resolve(self, value: T) -> bool:
        """Deliver the value. False: too late, the fallback was taken, and the caller must undo what `value` holds."""
        with self._lock:
            if self._is_ready:
                return False
            self._value = value
            self._is_ready = True
            self._gate.release()
        self._on_value()
        return True

    def done(self) -> bool:
        """Whether `result()` may be called. Never blocks; true from the deadline on."""
        if not self._is_ready and time.monotonic() >= self.deadline_s:
            self.resolve(self._fallback())
        return self._is_ready

    def result(self) -> T:
        """The value. Only after `done()` was true."""
        assert self._is_ready, "result() before done()"
        return self._value  # type: ignore[return-value]  # set before _is_ready

    def wait_until(self, until_s: float) -> bool:
        """Block until the value, the deadline or `until_s`, whichever comes first: for synchronous saves. Returns `done()`."""
        if self._gate.acquire(timeout=max(0.0, min(until_s, self.deadline_s) - time.monotonic())):
            self._gate.release()  # for whoever waits next
        return self.done()

    def wait(self) -> T:
        """Block until the value or the deadline: for synchronous saves and tests, never in a tick."""
        if not self.wait_until(self.deadline_s):  # the wait may return a hair early
            self.resolve(self._fallback())
        return self.result()


class LeasedSegment(Protocol):
    """One segment of a lookup's answer, mapped into this process and not evictable until its lease is released.

    Copy from `[address, address + num_bytes)`, then ask `intact()`: False means that the file was overwritten
    meanwhile, so what was copied must be thrown away (it counts as `raced`).
    """

    meta: SegmentMeta
    use_end: int
    """Use positions `[meta.start, use_end)`; below `meta.end` the restore must be truncated there."""
    tier: str
    address: int
    """Address of the payload, page-aligned, readable until the lease is released."""
    num_bytes: int

    def intact(self) -> bool:
        """Whether the file still holds this key in this generation. Call before and after the copy."""


@dataclass(slots=True)
class LookupResult:
    """The answer to one lookup. All segments, and the logits, are under one lease: `KvStore.release` it.

    Attributes:
        hit_len: the prompt's tokens `[0, hit_len)` are covered by `segments`; may be the whole prompt.
        segments: in order of restoring: blocks, then a tail or a further block cut at `use_end`; or a snapshot, after
            the blocks it needs. Their payload checksums have been verified where that was due.
        logits: the logits after the prompt's last token, only when `hit_len` is the whole prompt.
        miss_reason: why `hit_len` is not the whole prompt; None when it is.
        diverged_at: the position from which stored rows differ from the prompt; None when none goes on differently.
        lookup_ms: from the call to the answer.
        lease: what to release; None when nothing is leased.
    """

    hit_len: int = 0
    segments: list[LeasedSegment] = field(default_factory=list)
    logits: LeasedSegment | None = None
    miss_reason: MissReason | None = None
    diverged_at: int | None = None
    lookup_ms: float = 0.0
    lease: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupQuery:
    """What a lookup asks for.

    Attributes:
        root: key(0) of the key space in use (depends on the adapter set).
        block_keys: key at every block boundary within `tokens`, ascending.
        tokens: the whole prompt, packed.
        prompt_key: key(len(tokens)), under which its logits are stored.
        reuse: what the model's state allows.
        parent_key: the caller's `parent_key`: the daemon holds its answer while that key is being written, for up to
            `wait_ms`, and explains its absence.
        cautious: do not offer segments that a worker held when it died; for the retry of a request that was in flight.
    """

    root: bytes
    block_keys: tuple[bytes, ...]
    tokens: bytes
    prompt_key: bytes
    reuse: Reuse = Reuse.CUT
    parent_key: bytes | None = None
    wait_ms: int = 0
    cautious: bool = False


@dataclass(frozen=True, slots=True)
class SegmentSpec:
    """What a writer wants to store: the segment, and the most bytes its payload can have.

    `meta.reason` PREFIX pins it; that also pins a segment that is there already.
    """

    meta: SegmentMeta
    capacity_bytes: int


class Reservation(Protocol):
    """Room for one segment: a mapped, allocated region to pack the payload into. Then `publish` or `abort` it.

    Pages are already allocated and touched, so packing runs at memory speed and a full tier cannot be SIGBUS. The
    region stays writable until published or aborted, even if the daemon dies or gives the reservation up: then
    publishing is without effect.
    """

    meta: SegmentMeta
    address: int
    """Address of the payload region, page-aligned."""
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class AlreadyThere:
    """The segment is stored already: nothing needs packing."""

    key: bytes
    kind: SegmentKind


@dataclass(frozen=True, slots=True)
class Refused:
    """No reservation, and why. The save is skipped and counted."""

    key: bytes
    kind: SegmentKind
    reason: Refusal


ReserveOutcome = Reservation | AlreadyThere | Refused
