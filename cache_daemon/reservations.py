"""Writers' holds: who is writing which segment where. Pure.

Owner: the catalog. A reservation takes its bytes out of the budget before a byte is written. Its TTL only matters for a writer that
lives and never finishes; a dead one is known at once.
"""

from dataclasses import dataclass

from cache_daemon.entries import Identity
from cache_daemon.ids import Numbers
from cache_daemon.prefix_index import decrement, depends_on_parent
from erllama_host.kv.segment import SegmentKind, SegmentMeta


@dataclass(slots=True)
class Reservation:
    """A writer's hold on a segment.

    Attributes:
        path: of the temporary file. inode: of the recycled file lying there, or 0.
        generation: what the writer puts first.
    """

    token: int
    owner: str
    meta: SegmentMeta
    tier: str
    target_tier: str
    path: str
    inode: int
    generation: int
    file_bytes: int
    expires_s: float

    @property
    def identity(self) -> Identity:
        """What is being written."""
        return self.meta.key, self.meta.kind


class ReservationTable:
    """All open reservations."""

    def __init__(self, ttl_s: float, numbers: Numbers) -> None:
        self._ttl_s = ttl_s
        self._numbers = numbers
        self._open: dict[int, Reservation] = {}
        self._writing: dict[Identity, int] = {}
        self._num_by_key: dict[bytes, int] = {}
        self._num_by_parent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, token: int) -> bool:
        return token in self._open

    def new_token(self) -> int:
        """A token for the next reservation."""
        return self._numbers.next()

    def open(self, reservation: Reservation, now: float) -> None:
        """Begin a reservation; nobody else may be writing that segment."""
        assert reservation.identity not in self._writing
        reservation.expires_s = now + self._ttl_s
        self._open[reservation.token] = reservation
        self._writing[reservation.identity] = reservation.token
        meta = reservation.meta
        self._num_by_key[meta.key] = self._num_by_key.get(meta.key, 0) + 1
        if depends_on_parent(meta):
            self._num_by_parent[meta.parent] = self._num_by_parent.get(meta.parent, 0) + 1

    def close(self, token: int, owner: str) -> Reservation | None:
        """End a reservation; None when `owner` has none of that token."""
        reservation = self._open.get(token)
        if reservation is None or reservation.owner != owner:
            return None
        del self._open[token]
        del self._writing[reservation.identity]
        decrement(self._num_by_key, reservation.meta.key)
        if depends_on_parent(reservation.meta):
            decrement(self._num_by_parent, reservation.meta.parent)
        return reservation

    def renew(self, token: int, owner: str, now: float) -> bool:
        """Restart the TTL; False when the reservation is not `owner`'s any more."""
        reservation = self._open.get(token)
        if reservation is None or reservation.owner != owner:
            return False
        reservation.expires_s = now + self._ttl_s
        return True

    def is_writing(self, identity: Identity) -> bool:
        """Whether somebody is writing that segment."""
        return identity in self._writing

    def has_children(self, identity: Identity) -> bool:
        """Whether segments are being written that need this one before them."""
        key, kind = identity
        return kind is SegmentKind.BLOCK and key in self._num_by_parent

    def is_open(self, key: bytes) -> bool:
        """Whether anything with that key is being written."""
        return key in self._num_by_key

    def of_owner(self, owner: str) -> list[Reservation]:
        """All of one writer."""
        return [r for r in self._open.values() if r.owner == owner]

    def expired(self, now: float) -> list[Reservation]:
        """Those beyond their TTL."""
        return [r for r in self._open.values() if r.expires_s <= now]

    def next_expiry(self) -> float | None:
        """When the next one expires."""
        return min((r.expires_s for r in self._open.values()), default=None)
