"""Write-behind: which segments must reach a slower tier, and the bytes reserved there meanwhile. Pure.

Owner: the catalog. A save always lands in shared memory first; while its copy is on the way, the source stays. What finds no room
waits: on a full disk room comes a moment later, when workers have unmapped what was evicted.
"""

from cache_daemon.actions import Carry, Unlink
from cache_daemon.entries import Copy, Entry, Identity
from cache_daemon.holdings import Coming, Holdings
from cache_daemon.ids import Numbers
from erllama_host.kv.reuse import Refusal
from erllama_host.kv.segment import file_bytes

MAX_DEFERRED = 4096
"""Segments that wait for room; beyond it the oldest stay where they are."""


class Carrying:
    """Decides on copies between tiers."""

    def __init__(self, holdings: Holdings, numbers: Numbers) -> None:
        self._holdings = holdings
        self._numbers = numbers
        self._deferred: dict[Identity, None] = {}

    @property
    def num_deferred(self) -> int:
        """Segments that wait for room."""
        return len(self._deferred)

    def aim(self, namespace: bytes, target_tier: str) -> None:
        """A model's rows must reach `target_tier`: carry down what has not been (also what an earlier daemon had left)."""
        if self._holdings.stocks[target_tier].spec.is_shared_memory:
            return
        for entry in list(self._holdings.entries.values()):
            if entry.meta.namespace == namespace:
                entry.target_tier = target_tier
                self.ensure_target(entry)

    def ensure_target(self, entry: Entry) -> None:
        """Have a segment carried to the tier it must reach, now or when there is room."""
        if not self._begin(entry):
            self._holdings.tally.count("carry_deferred")
            self._defer(entry.identity)

    def retry(self) -> None:
        """Try again what found no room; to be called now and then."""
        waiting = [identity for identity in self._deferred if identity in self._holdings.entries]
        self._deferred.clear()
        for number, identity in enumerate(waiting):
            if not self._begin(self._holdings.entries[identity]):
                for other in (
                    *waiting[number + 1 :],
                    identity,
                ):  # one that is too large must not stand in the way of all
                    self._defer(other)
                return

    def _begin(self, entry: Entry) -> bool:
        """Carry a segment, unless it is where it must be or on its way. False: there is no room for it."""
        target = self._holdings.stocks[entry.target_tier]
        if entry.target_tier in entry.copies or entry.carrying or target.spec.is_shared_memory:
            return True
        size = file_bytes(entry.meta.num_tokens, entry.payload_bytes)
        entry.carrying = True  # also keeps it from being evicted for its own sake
        if isinstance(self._holdings.make_room(target, size), Refusal | Coming):
            entry.carrying = False
            return False
        target.ledger.reserved_bytes += size
        source = self._holdings.path_of(entry.identity, self._holdings.fastest_copy(entry).tier)
        temporary = f"{target.spec.path}/tmp/{self._numbers.next():x}"  # noqa: S108
        final = self._holdings.path_of(entry.identity, entry.target_tier)
        self._holdings.actions.append(Carry(entry.identity, source, entry.target_tier, temporary, final, size))
        return True

    def _defer(self, identity: Identity) -> None:
        self._deferred[identity] = None
        if len(self._deferred) > MAX_DEFERRED:
            del self._deferred[next(iter(self._deferred))]

    def carried(self, carry: Carry, inode: int, generation: int) -> None:
        """A copy has reached another tier; its bytes were reserved there."""
        self._holdings.stocks[carry.tier].ledger.reserved_bytes -= carry.file_bytes
        entry = self._holdings.entries.get(carry.identity)
        if entry is None:  # found corrupt meanwhile
            self._holdings.actions.append(Unlink(carry.final))
            return
        entry.carrying = False
        if carry.tier not in entry.copies:
            self._holdings.add_copy(
                # What comes back from a disk is compared when it is read first.
                entry,
                Copy(carry.tier, inode, generation, carry.file_bytes, recyclable=False, verified=False),
            )
        self._holdings.tally.count("carried")

    def carry_failed(self, carry: Carry, *, no_space: bool) -> None:
        """A copy did not reach its tier; the segment stays where it is."""
        ledger = self._holdings.stocks[carry.tier].ledger
        ledger.reserved_bytes -= carry.file_bytes
        self._holdings.tally.count("carry_failed")
        if no_space:
            self._holdings.note_full(carry.tier)
        if (entry := self._holdings.entries.get(carry.identity)) is not None:
            entry.carrying = False
            self._holdings.consider(carry.identity)
