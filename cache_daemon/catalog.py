"""The cache's one table: segments, their copies, readers, writers and bytes. Pure: events and `now` in, actions out.

Owner: the daemon's one loop; nobody else calls it. Decisions about files are left in `take_actions()`, to be carried out in order
before the answer is sent. The rules it keeps, whatever happens:

* used bytes of a tier never grow beyond its limit, and are counted before they are given out;
* what is pinned, leased or being carried is not evicted, nor a segment that others need;
* a file is overwritten only when every lease on it ended by its reader's own word or proven death.

`now` is monotonic seconds. Heat is counted in wall-clock time, because it must compare with file times after a restart.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cache_daemon.actions import Action, Check, Move, Salvage, Unlink
from cache_daemon.carrying import Carrying
from cache_daemon.entries import Copy, Entry, FileRef, Identity, TierSpec
from cache_daemon.holdings import Coming, Holdings
from cache_daemon.ids import Numbers
from cache_daemon.leases import Ended, LeaseTable
from cache_daemon.prefix_index import Match, Prompt, depends_on_parent
from cache_daemon.reservations import Reservation, ReservationTable
from cache_daemon.stock import FreeFile, Stock
from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta, file_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogSettings:
    """Parameters of a catalog. `first_id`: of leases and reservations, random per life. `wall_offset_s`: wall − monotonic."""

    block_tokens: int = 256
    lease_ttl_s: float = 60.0
    reservation_ttl_s: float = 30.0
    hold_s: float = 30.0
    first_id: int = 1
    wall_offset_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer to a lookup: what matched, under which lease (0: nothing is leased), and why it is not all of the prompt."""

    match: Match
    lease: int
    miss_reason: MissReason | None


@dataclass(frozen=True, slots=True)
class There:
    """The segment is stored already."""


ReserveResult = Reservation | There | Coming | Refusal


class Catalog:
    """See the module docstring."""

    def __init__(self, tiers: Iterable[TierSpec], settings: CatalogSettings) -> None:
        self.settings = settings
        self.leases = LeaseTable(settings.lease_ttl_s, settings.hold_s, settings.first_id)
        numbers = Numbers(settings.first_id)
        self.reservations = ReservationTable(settings.reservation_ttl_s, numbers)
        self.holdings = Holdings(tiers, settings.block_tokens, self.leases, self.reservations)
        self.carrying = Carrying(self.holdings, numbers)
        self.recovering = False

    def take_actions(self) -> list[Action]:
        """What must be done to files and workers now, in order."""
        actions, self.holdings.actions = self.holdings.actions, []
        return actions

    # ---- readers -------------------------------------------------------------------------------------------------

    def lookup(
        self, owner: str, prompt: Prompt, now: float, *, parent_key: bytes | None = None, cautious: bool = False
    ) -> Granted:
        """Find the longest usable prefix and lease all of it to `owner`."""
        self.holdings.now = now
        allowed = self._not_fatal if cautious else _anything
        match = self.holdings.index.match(prompt, allowed)
        identities = [identity for identity, _ in match.parts]
        if match.logits is not None:
            identities.append(match.logits)
        self.holdings.touch(identities, owner, now + self.settings.wall_offset_s)
        lease = self.leases.grant(owner, identities, now) if identities else 0
        return Granted(match, lease, self._miss_reason(prompt, match, parent_key, cautious))

    def release(
        self,
        lease: int,
        owner: str,
        *,
        verified: Iterable[Identity] = (),
        corrupt: Iterable[Identity] = (),
        raced: Iterable[Identity] = (),
    ) -> None:
        """A reader is done. What it found out: checksums that hold, such that do not, and files that were not as told."""
        self._settle(self.leases.release(lease, owner))
        for identity in verified:
            if (entry := self.holdings.entries.get(identity)) is not None:
                self.holdings.fastest_copy(entry).verified = True
        for identity in corrupt:
            self.holdings.drop_corrupt(identity)
        for identity in raced:
            if (entry := self.holdings.entries.get(identity)) is not None:
                self._check(entry)

    def _check(self, entry: Entry, *, payload: bool = False) -> None:
        tier = self.holdings.fastest_copy(entry).tier
        path = self.holdings.path_of(entry.identity, tier)
        self.holdings.actions.append(Check(entry.identity, tier, path, payload))

    def looked_at(self, check: Check, inode: int | None) -> None:
        """What a `Check` found: a good file with that inode, or none. If it is not our copy, that is given up.

        Somebody has removed the file, cut it or put another in its place: it would be offered for ever, and never be written again.
        """
        entry = self.holdings.entries.get(check.identity)
        copy = entry.copies.get(check.tier) if entry is not None else None
        if copy is not None and copy.inode != inode:
            self.holdings.drop_corrupt(check.identity, check.tier)

    def _not_fatal(self, identity: Identity) -> bool:
        return self.holdings.entries[identity].deaths == 0

    def _miss_reason(self, prompt: Prompt, match: Match, parent_key: bytes | None, cautious: bool) -> MissReason | None:
        if match.hit_len * 4 == len(prompt.tokens):
            return None
        if match.uncuttable:
            return MissReason.UNCUTTABLE
        if parent_key is not None and not self._knows(parent_key):
            return self.holdings.ghosts.reason(parent_key) or MissReason.UNKNOWN_PARENT
        next_block = match.hit_len // self.settings.block_tokens
        missed = prompt.block_keys[next_block] if next_block < len(prompt.block_keys) else prompt.prompt_key
        if cautious and self._knows(missed):
            return MissReason.WITHHELD
        reason = self.holdings.ghosts.reason(missed) or (MissReason.RECOVERING if self.recovering else None)
        if reason is None and match.hit_len == 0 and self.holdings.index.known_elsewhere(prompt.root, prompt.tokens):
            return MissReason.OTHER_NAMESPACE
        return reason or MissReason.NEVER_SEEN

    def _knows(self, key: bytes) -> bool:
        return any((key, kind) in self.holdings.entries for kind in SegmentKind)

    def _settle(self, ended: Ended) -> None:
        for identity in ended.by_ttl:
            if (entry := self.holdings.entries.get(identity)) is not None:
                for copy in entry.copies.values():
                    copy.recyclable = False
        for identity in ended.by_death:
            if (entry := self.holdings.entries.get(identity)) is not None:
                entry.deaths += 1
                if not self.holdings.is_in_memory(entry):  # a bad sector is a SIGBUS for whoever reads it
                    self._check(entry, payload=True)
        for identity in ended.free:
            self.holdings.returned(identity)

    # ---- writers -------------------------------------------------------------------------------------------------

    def reserve(
        self, owner: str, target_tier: str, meta: SegmentMeta, capacity_bytes: int, now: float
    ) -> ReserveResult:
        """Give `owner` room to write a segment, or say why not.

        Args:
            target_tier: the tier the segment must reach; shared memory comes first in any case.
            capacity_bytes: the most its payload can have.
        """
        self.holdings.now = now
        identity = (meta.key, meta.kind)
        if (entry := self.holdings.entries.get(identity)) is not None:
            self._wanted_again(entry, meta, target_tier)
            return There()
        refusal = self._refusal(identity, meta, target_tier)
        if refusal is not None:
            return self._refuse(identity, refusal)
        stock = self._write_stock(target_tier)
        size = file_bytes(meta.num_tokens, capacity_bytes)
        room = self.holdings.make_room(stock, size, spare=(meta.parent, SegmentKind.BLOCK))
        if room is Refusal.NO_BUDGET:
            return self._refuse(identity, Refusal.NO_BUDGET)
        if isinstance(room, Coming):
            return room
        return self._open(owner, target_tier, stock, meta, size, room if isinstance(room, FreeFile) else None, now)

    def _refusal(self, identity: Identity, meta: SegmentMeta, target_tier: str) -> Refusal | None:
        if self.recovering:
            return Refusal.RECOVERING
        if target_tier not in self.holdings.stocks:
            return Refusal.UNKNOWN_TIER
        if self.reservations.is_writing(identity):
            return Refusal.BEING_WRITTEN
        parent = (meta.parent, SegmentKind.BLOCK)
        if depends_on_parent(meta) and parent not in self.holdings.entries and not self.reservations.is_writing(parent):
            return Refusal.NO_PARENT
        return None

    def _refuse(self, identity: Identity, reason: Refusal) -> Refusal:
        self.holdings.tally.count(f"refused_{reason.value}")
        if reason is Refusal.NO_BUDGET:
            self.holdings.ghosts.add(identity[0], MissReason.GATED)
        return reason

    def _open(
        self,
        owner: str,
        target_tier: str,
        stock: Stock,
        meta: SegmentMeta,
        size: int,
        recycled: FreeFile | None,
        now: float,
    ) -> Reservation:
        token = self.reservations.new_token()
        path = f"{stock.spec.path}/tmp/{token:x}"  # noqa: S108
        inode, generation = 0, 1
        if recycled is not None:
            inode, generation, size = recycled.inode, recycled.generation + 1, recycled.file_bytes
            self.holdings.actions.append(Move(recycled.path, path))
            self.holdings.mappings.add(owner, (stock.spec.name, inode))
            self.holdings.tally.count("recycled")
        stock.ledger.reserved_bytes += size
        reservation = Reservation(
            token, owner, meta, stock.spec.name, target_tier, path, inode, generation, size, expires_s=now
        )
        self.reservations.open(reservation, now)
        return reservation

    def renew(self, owner: str, token: int, now: float) -> bool:
        """Whether a reservation is still its writer's; restarts its TTL."""
        return self.reservations.renew(token, owner, now)

    def announce(
        self, owner: str, token: int, inode: int, generation: int, payload_bytes: int, size: int, now: float,
        *, adopted: bool = False,
    ) -> bool:  # fmt: skip
        """A file has its final name: make it visible. False: it is not wanted (any more), and is removed."""
        self.holdings.now = now
        reservation = self._close(token, owner)
        if reservation is None:
            return False
        stock = self.holdings.stocks[reservation.tier]
        stock.ledger.reserved_bytes -= reservation.file_bytes
        self.holdings.mappings.add(owner, (reservation.tier, inode))
        if not adopted:
            size = reservation.file_bytes  # as counted, whatever the writer says
        copy = Copy(reservation.tier, inode, generation, size, recyclable=not adopted, verified=True)
        wall = now + self.settings.wall_offset_s
        entry = self.holdings.new_entry(reservation.meta, payload_bytes, reservation.target_tier, wall, wall)
        self.holdings.add_copy(entry, copy)
        self.holdings.tally.published(reservation.meta, size)
        self.carrying.ensure_target(entry)
        return True

    def abort(self, owner: str, token: int, inode: int, now: float, *, no_space: bool = False) -> None:
        """A writer gives its reservation back by its own word, so its file may be overwritten."""
        self.holdings.now = now
        reservation = self._close(token, owner)
        if reservation is None:
            self._overdue_returned(owner, token)
            return
        stock = self.holdings.stocks[reservation.tier]
        stock.ledger.reserved_bytes -= reservation.file_bytes
        if no_space:
            self.holdings.note_full(reservation.tier)
        if inode:  # the writer may keep it mapped
            self.holdings.mappings.add(owner, (reservation.tier, inode))
        file = FreeFile(reservation.path, inode, reservation.generation, reservation.file_bytes)
        if inode and stock.fits_pool(file.file_bytes):
            self.holdings.put_into_pool(stock, file)
        else:
            self.holdings.actions.append(Unlink(reservation.path))
            self.holdings.drop_name(stock, (reservation.tier, inode), file.file_bytes)

    def _close(self, token: int, owner: str) -> Reservation | None:
        """End a reservation; what it needed before it may be evictable now."""
        reservation = self.reservations.close(token, owner)
        if reservation is not None:
            self.holdings.consider((reservation.meta.parent, SegmentKind.BLOCK))
        return reservation

    # ---- events --------------------------------------------------------------------------------------------------

    def worker_gone(self, owner: str, now: float, *, hold: bool = True) -> None:
        """A worker is dead, or has said goodbye: its writes and leases end, its mappings are gone.

        Args:
            hold: it died, and a successor is about to want what it had leased.
        """
        self.holdings.now = now
        self._settle(self.leases.owner_died(owner, now) if hold else self.leases.owner_left(owner))
        for file, num_bytes in self.holdings.mappings.forget_owner(owner):
            self.holdings.unmapped(file, num_bytes)
        for reservation in self.reservations.of_owner(owner):
            self._end_unheard(reservation, (reservation.tier, reservation.inode))

    def expire(self, now: float) -> None:
        """End what is beyond its time."""
        self.holdings.now = now
        self._settle(self.leases.expire(now))
        for reservation in self.reservations.expired(now):
            self.holdings.tally.count("reservations_expired")
            overdue = (reservation.tier, reservation.inode or -reservation.token)
            self.holdings.mappings.add(reservation.owner, overdue)
            self._end_unheard(reservation, overdue)

    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        times = [self.leases.next_expiry(), self.reservations.next_expiry()]
        return min((time for time in times if time is not None), default=None)

    def forgotten(self, owner: str, file: FileRef) -> None:
        """A worker has unmapped a file."""
        freed = self.holdings.mappings.forget(owner, file)
        if freed:
            self.holdings.unmapped(file, freed)

    def _overdue_returned(self, owner: str, token: int) -> None:
        """The writer of an expired reservation has let go of the file it had never named."""
        for tier in self.holdings.stocks:
            self.forgotten(owner, (tier, -token))

    def _end_unheard(self, reservation: Reservation, file: FileRef) -> None:
        """End a reservation whose writer has not said what became of it. `file`: what it was writing."""
        self._close(reservation.token, reservation.owner)
        tier, identity = reservation.tier, reservation.identity
        final = self.holdings.path_of(identity, tier)
        self.holdings.actions.append(
            Salvage(tier, identity, reservation.path, final, reservation.target_tier, file, reservation.file_bytes)
        )

    def salvaged(self, action: Salvage, found: FileRef | None) -> None:
        """What a `Salvage` came to: `found` is about to be adopted. Any other file stays counted while anybody maps it."""
        stock = self.holdings.stocks[action.tier]
        stock.ledger.reserved_bytes -= action.file_bytes
        if found != action.file:
            self.holdings.drop_name(stock, action.file, action.file_bytes)

    # ---- copies --------------------------------------------------------------------------------------------------

    def adopt(
        self, meta: SegmentMeta, copy: Copy, payload_bytes: int, created_s: float, used_s: float, target_tier: str
    ) -> None:
        """Add a good file found on disk or in shared memory. One that exceeds the budget is evicted by `trim`."""
        identity = (meta.key, meta.kind)
        entry = self.holdings.entries.get(identity)
        if entry is None:
            entry = self.holdings.new_entry(meta, payload_bytes, target_tier, created_s, used_s)
        elif copy.tier in entry.copies:
            return
        self.holdings.add_copy(entry, copy)
        self.holdings.tally.count("adopted")

    def _wanted_again(self, entry: Entry, meta: SegmentMeta, target_tier: str) -> None:
        if meta.reason is SaveReason.PREFIX:
            entry.pinned = True
        if entry.target_tier != target_tier and target_tier in self.holdings.stocks:
            current, wanted = self.holdings.stocks[entry.target_tier].spec, self.holdings.stocks[target_tier].spec
            entry.target_tier = target_tier if wanted.speed > current.speed else entry.target_tier
            self.carrying.ensure_target(entry)

    def _write_stock(self, target_tier: str) -> Stock:
        """Where a worker writes: its own tier if that is shared memory, else the fastest."""
        stock = self.holdings.stocks[target_tier]
        return stock if stock.spec.is_shared_memory else min(self.holdings.stocks.values(), key=lambda s: s.spec.speed)


def _anything(_identity: Identity) -> bool:
    return True
