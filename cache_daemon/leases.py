"""Who may be reading what. Pure: takes `now`, returns what ended.

Owner: the catalog. A *lease* keeps segments from being evicted until its reader releases it. When the reader dies, its
leases become *holds*: its successor is about to want the same segments, so they go last, for a while. The TTL is the
last resort against a reader that is alive and never releases; it proves nothing about the reader, so what it
protected must never be overwritten (see `Ended.by_ttl`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cache_daemon.entries import Identity


@dataclass(slots=True)
class _Lease:
    owner: str
    segments: tuple[Identity, ...]
    expires_s: float


@dataclass(slots=True)
class Ended:
    """What an event ended.

    Attributes:
        free: segments without any lease now.
        by_ttl: segments a lease on which ended by its TTL: its reader may still be reading.
        by_death: segments that were leased by a reader that died.
    """

    free: list[Identity] = field(default_factory=list)
    by_ttl: list[Identity] = field(default_factory=list)
    by_death: list[Identity] = field(default_factory=list)


class LeaseTable:
    """All leases and holds."""

    def __init__(self, ttl_s: float, hold_s: float, first_id: int = 1) -> None:
        """
        Args:
            first_id: of leases; random per life of the daemon, so that a stale release ends nobody else's lease.
        """
        self._ttl_s = ttl_s
        self._hold_s = hold_s
        self._next_id = first_id
        self._leases: dict[int, _Lease] = {}
        self._num_leases: dict[Identity, int] = {}
        self._held_until: dict[Identity, float] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def grant(self, owner: str, segments: Iterable[Identity], now: float) -> int:
        """Lease segments to a reader; returns the lease's id. `now` never goes back."""
        lease_id = self._next_id
        self._next_id += 1
        lease = _Lease(owner, tuple(segments), now + self._ttl_s)
        self._leases[lease_id] = lease
        for identity in lease.segments:
            self._num_leases[identity] = self._num_leases.get(identity, 0) + 1
        return lease_id

    def release(self, lease_id: int, owner: str) -> Ended:
        """End a lease. One that is unknown, or another's, is left alone."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.owner != owner:
            return Ended()
        return Ended(free=self._end(lease_id))

    def owner_died(self, owner: str, now: float) -> Ended:
        """Turn the leases of a dead reader into holds."""
        ended = Ended()
        for lease_id in [i for i, lease in self._leases.items() if lease.owner == owner]:
            segments = self._leases[lease_id].segments
            ended.by_death += segments
            ended.free += self._end(lease_id)
            for identity in segments:
                self._held_until.pop(identity, None)  # to the end: see next_expiry
                self._held_until[identity] = now + self._hold_s
        return ended

    def owner_left(self, owner: str) -> Ended:
        """End the leases of a reader that has said goodbye."""
        ended = Ended()
        for lease_id in [i for i, lease in self._leases.items() if lease.owner == owner]:
            ended.free += self._end(lease_id)
        return ended

    def expire(self, now: float) -> Ended:
        """End leases beyond their TTL, and old holds."""
        ended = Ended()
        for lease_id in [i for i, lease in self._leases.items() if lease.expires_s <= now]:
            ended.by_ttl += self._leases[lease_id].segments
            ended.free += self._end(lease_id)
        self._held_until = {i: until for i, until in self._held_until.items() if until > now}
        return ended

    def is_leased(self, identity: Identity) -> bool:
        """Whether any reader has it."""
        return identity in self._num_leases

    def is_held(self, identity: Identity, now: float) -> bool:
        """Whether a reader died over it lately."""
        return self._held_until.get(identity, now) > now

    def forget_hold(self, identity: Identity) -> None:
        """The segment is gone."""
        self._held_until.pop(identity, None)

    def next_expiry(self) -> float | None:
        """When `expire` has something to do next; None: nothing is pending. Asked in every round of the daemon's loop."""
        # Both tables are in the order in which their rows were made, which is that of expiry.
        first_lease, first_hold = next(iter(self._leases.values()), None), next(iter(self._held_until.values()), None)
        if first_lease is None or (first_hold is not None and first_hold < first_lease.expires_s):
            return first_hold
        return first_lease.expires_s

    def _end(self, lease_id: int) -> list[Identity]:
        free = []
        for identity in self._leases.pop(lease_id).segments:
            self._num_leases[identity] -= 1
            if not self._num_leases[identity]:
                del self._num_leases[identity]
                free.append(identity)
        return free
