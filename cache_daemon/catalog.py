"""The cache's one table: segments, their copies, readers, writers and bytes. Pure: events and `now` in, actions out.

Owner: the daemon's one loop; nobody else calls it. Decisions about files are left in `take_actions()`, to be carried out in order
before the answer is sent. The rules it keeps, whatever happens:

* used bytes of a tier never grow beyond its limit, and are counted before they are given out;
* what is pinned, leased or being carried is not evicted, nor a segment that others need;
* a file is overwritten only when every lease on it ended by its reader's own word or proven death.

`now` is monotonic seconds. Heat is counted in wall-clock time, because it must compare with file times after a restart.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cache_daemon.actions import Action, Carry, ForgetMapping, Move, Salvage, Unlink
from cache_daemon.entries import Copy, Entry, FileRef, Identity, TierSpec
from cache_daemon.eviction import Evictor, Standing, add_heat, heat_of_hit, rank_of
from cache_daemon.ghosts import Ghosts
from cache_daemon.leases import Ended, LeaseTable
from cache_daemon.ledger import Ledger
from cache_daemon.mappings import MappingTable
from cache_daemon.prefix_index import Match, PrefixIndex, Prompt, depends_on_parent
from cache_daemon.reservations import Reservation, ReservationTable
from cache_daemon.stock import FreeFile, Stock, suits
from cache_daemon.tally import Tally
from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta, file_bytes, file_name


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
class Coming:
    """Room for a reservation is being made: unlinked files wait for workers to unmap them. Ask again when that changes."""


@dataclass(frozen=True, slots=True)
class There:
    """The segment is stored already."""


ReserveResult = Reservation | There | Coming | Refusal


class Catalog:
    """See the module docstring."""

    def __init__(self, tiers: Iterable[TierSpec], settings: CatalogSettings) -> None:
        self.settings = settings
        self.index = PrefixIndex(settings.block_tokens)
        self.entries: dict[Identity, Entry] = {}
        self.leases = LeaseTable(settings.lease_ttl_s, settings.hold_s, settings.first_id)
        self.reservations = ReservationTable(settings.reservation_ttl_s, settings.first_id)
        self.mappings = MappingTable()
        self.ghosts = Ghosts()
        self.tally = Tally()
        self.recovering = False
        self.touched: set[Identity] = set()
        """Used since their file times were set last; the service mirrors `last_used_s` to the files in batches."""
        self._actions: list[Action] = []
        self._now = 0.0
        self.stocks: dict[str, Stock] = {spec.name: self._new_stock(spec) for spec in tiers}

    def _new_stock(self, spec: TierSpec) -> Stock:
        ledger = Ledger(spec.budget_bytes, spec.budget_bytes)
        return Stock(spec, ledger, Evictor(self._standing_in(spec.name)))

    def take_actions(self) -> list[Action]:
        """What must be done to files and workers now, in order."""
        actions, self._actions = self._actions, []
        return actions

    # ---- readers -------------------------------------------------------------------------------------------------

    def lookup(
        self, owner: str, prompt: Prompt, now: float, *, parent_key: bytes | None = None, cautious: bool = False
    ) -> Granted:
        """Find the longest usable prefix and lease all of it to `owner`."""
        self._now = now
        allowed = self._not_fatal if cautious else _anything
        match = self.index.match(prompt, allowed)
        identities = [identity for identity, _ in match.parts]
        if match.logits is not None:
            identities.append(match.logits)
        for identity in identities:
            self._touch(self.entries[identity], owner, now)
        lease = self.leases.grant(owner, identities, now) if identities else 0
        return Granted(match, lease, self._miss_reason(prompt, match, parent_key))

    def release(
        self, lease: int, owner: str, *, verified: Iterable[Identity] = (), corrupt: Iterable[Identity] = ()
    ) -> None:
        """A reader is done. What it found out: payloads whose checksum holds, and such where it does not."""
        self._settle(self.leases.release(lease, owner))
        for identity in verified:
            if (entry := self.entries.get(identity)) is not None:
                self.fastest_copy(entry).verified = True
        for identity in corrupt:
            self.drop_corrupt(identity)

    def fastest_copy(self, entry: Entry) -> Copy:
        """The copy to read."""
        return min(entry.copies.values(), key=lambda copy: self.stocks[copy.tier].spec.speed)

    def path_of(self, identity: Identity, tier: str) -> str:
        """Final path of a segment in a tier."""
        return f"{self.stocks[tier].spec.path}/{file_name(*identity)}"

    def _touch(self, entry: Entry, owner: str, now: float) -> None:
        wall = now + self.settings.wall_offset_s
        entry.hits += 1
        entry.heat = add_heat(entry.heat, heat_of_hit(wall))
        entry.last_used_s = wall
        self.touched.add(entry.identity)
        copy = self.fastest_copy(entry)
        self.mappings.add(owner, (copy.tier, copy.inode))

    def _not_fatal(self, identity: Identity) -> bool:
        return self.entries[identity].deaths == 0

    def _miss_reason(self, prompt: Prompt, match: Match, parent_key: bytes | None) -> MissReason | None:
        if match.hit_len * 4 == len(prompt.tokens):
            return None
        if parent_key is not None and not self._knows(parent_key):
            return self.ghosts.reason(parent_key) or MissReason.UNKNOWN_PARENT
        next_block = match.hit_len // self.settings.block_tokens
        missed = prompt.block_keys[next_block] if next_block < len(prompt.block_keys) else prompt.prompt_key
        reason = self.ghosts.reason(missed)
        if reason is None and match.hit_len == 0 and self.index.known_elsewhere(prompt.root, prompt.tokens):
            return MissReason.OTHER_NAMESPACE
        return reason or MissReason.NEVER_SEEN

    def _knows(self, key: bytes) -> bool:
        return any((key, kind) in self.entries for kind in SegmentKind)

    def _settle(self, ended: Ended) -> None:
        for identity in ended.by_ttl:
            if (entry := self.entries.get(identity)) is not None:
                for copy in entry.copies.values():
                    copy.recyclable = False
        for identity in ended.by_death:
            if (entry := self.entries.get(identity)) is not None:
                entry.deaths += 1
        for identity in ended.free:
            self._consider(identity)

    # ---- writers -------------------------------------------------------------------------------------------------

    def missing(self, identity: Identity) -> bool:
        """Whether a segment is neither stored nor being written."""
        return identity not in self.entries and not self.reservations.is_writing(identity)

    def reserve(
        self, owner: str, target_tier: str, meta: SegmentMeta, capacity_bytes: int, now: float
    ) -> ReserveResult:
        """Give `owner` room to write a segment, or say why not.

        Args:
            target_tier: the tier the segment must reach; shared memory comes first in any case.
            capacity_bytes: the most its payload can have.
        """
        self._now = now
        identity = (meta.key, meta.kind)
        if (entry := self.entries.get(identity)) is not None:
            self._wanted_again(entry, meta, target_tier)
            return There()
        refusal = self._refusal(identity, meta, target_tier)
        if refusal is not None:
            return self._refuse(identity, refusal)
        stock = self._write_stock(target_tier)
        size = file_bytes(meta.num_tokens, capacity_bytes)
        room = self._make_room(stock, size)
        if room is Refusal.NO_BUDGET:
            return self._refuse(identity, Refusal.NO_BUDGET)
        if isinstance(room, Coming):
            return room
        return self._open(owner, target_tier, stock, meta, size, room if isinstance(room, FreeFile) else None, now)

    def _refusal(self, identity: Identity, meta: SegmentMeta, target_tier: str) -> Refusal | None:
        if self.recovering:
            return Refusal.RECOVERING
        if target_tier not in self.stocks:
            return Refusal.UNKNOWN_TIER
        if self.reservations.is_writing(identity):
            return Refusal.BEING_WRITTEN
        parent = (meta.parent, SegmentKind.BLOCK)
        if depends_on_parent(meta) and parent not in self.entries and not self.reservations.is_writing(parent):
            return Refusal.NO_PARENT
        return None

    def _refuse(self, identity: Identity, reason: Refusal) -> Refusal:
        self.tally.count(f"refused_{reason.value}")
        if reason is Refusal.NO_BUDGET:
            self.ghosts.add(identity[0], MissReason.GATED)
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
            self._actions.append(Move(recycled.path, path))
            self.mappings.add(owner, (stock.spec.name, inode))
            self.tally.count("recycled")
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
        self._now = now
        reservation = self.reservations.close(token, owner)
        if reservation is None:
            return False
        stock = self.stocks[reservation.tier]
        stock.ledger.reserved_bytes -= reservation.file_bytes
        self.mappings.add(owner, (reservation.tier, inode))
        copy = Copy(reservation.tier, inode, generation, size, recyclable=not adopted, verified=True)
        wall = now + self.settings.wall_offset_s
        entry = self._new_entry(reservation.meta, payload_bytes, reservation.target_tier, wall, wall)
        self._add_copy(entry, copy)
        self.tally.published(reservation.meta, size)
        self._ensure_target(entry)
        return True

    def abort(self, owner: str, token: int, inode: int, now: float, *, no_space: bool = False) -> None:
        """A writer gives its reservation back by its own word, so its file may be overwritten."""
        self._now = now
        reservation = self.reservations.close(token, owner)
        if reservation is None:
            self._overdue_returned(owner, token)
            return
        stock = self.stocks[reservation.tier]
        stock.ledger.reserved_bytes -= reservation.file_bytes
        if no_space:
            self.tally.count("no_space")
            stock.ledger.limit_bytes = min(stock.ledger.limit_bytes, stock.ledger.used_bytes)
        file = FreeFile(reservation.path, inode, reservation.generation, reservation.file_bytes)
        if inode and stock.fits_pool(file.file_bytes):
            self._pool(stock, file)
        else:
            self._actions.append(Unlink(reservation.path))
            self._unlinked(stock, (reservation.tier, inode), file.file_bytes)

    # ---- events --------------------------------------------------------------------------------------------------

    def worker_gone(self, owner: str, now: float, *, hold: bool = True) -> None:
        """A worker is dead, or has said goodbye: its writes and leases end, its mappings are gone.

        Args:
            hold: it died, and a successor is about to want what it had leased.
        """
        self._now = now
        self._settle(self.leases.owner_died(owner, now) if hold else self.leases.owner_left(owner))
        for reservation in self.reservations.of_owner(owner):
            self._end_unheard(reservation)
        for (tier, _), num_bytes in self.mappings.forget_owner(owner):
            self.stocks[tier].ledger.unlinked_bytes -= num_bytes

    def aim(self, namespace: bytes, target_tier: str) -> None:
        """A model's rows must reach `target_tier`: carry down what has not been (also what an earlier daemon had left)."""
        if self.stocks[target_tier].spec.is_shared_memory:
            return
        for entry in list(self.entries.values()):
            if entry.meta.namespace == namespace:
                entry.target_tier = target_tier
                self._ensure_target(entry)

    def expire(self, now: float) -> None:
        """End what is beyond its time."""
        self._now = now
        self._settle(self.leases.expire(now))
        for reservation in self.reservations.expired(now):
            self.tally.count("reservations_expired")
            overdue = (reservation.tier, reservation.inode or -reservation.token)
            self.mappings.add(reservation.owner, overdue)
            self._end_unheard(reservation)
            self._unlinked(self.stocks[reservation.tier], overdue, reservation.file_bytes)

    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        times = [self.leases.next_expiry(), self.reservations.next_expiry()]
        return min((time for time in times if time is not None), default=None)

    def forgotten(self, owner: str, file: FileRef) -> None:
        """A worker has unmapped a file."""
        freed = self.mappings.forget(owner, file)
        if freed:
            self.stocks[file[0]].ledger.unlinked_bytes -= freed

    def _overdue_returned(self, owner: str, token: int) -> None:
        """The writer of an expired reservation has let go of the file it had never named."""
        for tier in self.stocks:
            self.forgotten(owner, (tier, -token))

    def _end_unheard(self, reservation: Reservation) -> None:
        self.reservations.close(reservation.token, reservation.owner)
        self.stocks[reservation.tier].ledger.reserved_bytes -= reservation.file_bytes
        identity = reservation.identity
        final = self.path_of(identity, reservation.tier)
        self._actions.append(
            Salvage(reservation.tier, identity, reservation.path, final, reservation.target_tier)
        )  # fmt: skip

    # ---- copies --------------------------------------------------------------------------------------------------

    def adopt(
        self, meta: SegmentMeta, copy: Copy, payload_bytes: int, created_s: float, used_s: float, target_tier: str
    ) -> None:
        """Add a good file found on disk or in shared memory. One that exceeds the budget is evicted by `trim`."""
        identity = (meta.key, meta.kind)
        entry = self.entries.get(identity)
        if entry is None:
            entry = self._new_entry(meta, payload_bytes, target_tier, created_s, used_s)
        elif copy.tier in entry.copies:
            return
        self._add_copy(entry, copy)
        self.tally.count("adopted")

    def carried(self, carry: Carry, inode: int, generation: int) -> None:
        """A copy has reached another tier; its bytes were reserved there."""
        self.stocks[carry.tier].ledger.reserved_bytes -= carry.file_bytes
        entry = self.entries.get(carry.identity)
        if entry is None:  # found corrupt meanwhile
            self._actions.append(Unlink(carry.final))
            return
        entry.carrying = False
        if carry.tier not in entry.copies:
            self._add_copy(
                entry, Copy(carry.tier, inode, generation, carry.file_bytes, recyclable=False, verified=True)
            )
        self.tally.count("carried")

    def carry_failed(self, carry: Carry, *, no_space: bool) -> None:
        """A copy did not reach its tier; the segment stays where it is."""
        ledger = self.stocks[carry.tier].ledger
        ledger.reserved_bytes -= carry.file_bytes
        self.tally.count("carry_failed")
        if no_space:
            ledger.limit_bytes = min(ledger.limit_bytes, ledger.used_bytes)
        if (entry := self.entries.get(carry.identity)) is not None:
            entry.carrying = False
            self._consider(carry.identity)

    def set_limit(self, tier: str, limit_bytes: int) -> None:
        """How much of the budget the filesystem can really hold; what exceeds it is evicted."""
        ledger = self.stocks[tier].ledger
        ledger.limit_bytes = min(ledger.budget_bytes, max(0, limit_bytes))
        self.trim(tier)

    def trim(self, tier: str, target_bytes: int | None = None) -> int:
        """Let go of bytes until at most `target_bytes` (default: the limit) are in use. Returns how many went."""
        stock = self.stocks[tier]
        target = stock.ledger.limit_bytes if target_bytes is None else target_bytes
        before = stock.ledger.used_bytes - stock.ledger.unlinked_bytes
        while stock.ledger.used_bytes - stock.ledger.unlinked_bytes > target:
            if (free := stock.pop_free()) is not None:
                self._unlink_free(stock, free)
            elif (victim := stock.evictor.next_victim()) is not None:
                self._drop_copy(self.entries[victim], stock)
            else:
                break
        return before - (stock.ledger.used_bytes - stock.ledger.unlinked_bytes)

    def drop_corrupt(self, identity: Identity, tier: str | None = None) -> None:
        """A copy of a segment (by default the fastest) is damaged: remove it."""
        entry = self.entries.get(identity)
        if entry is None or (tier is not None and tier not in entry.copies):
            return
        copy = entry.copies[tier] if tier is not None else self.fastest_copy(entry)
        self.tally.count("corrupt")
        copy.recyclable = False
        self._drop_copy(entry, self.stocks[copy.tier], MissReason.CORRUPT)

    def evict_entry(self, identity: Identity, *, pinned: bool = False) -> int:
        """Drop all copies of a segment, unless it is leased, pinned, carried or needed. Returns the bytes that went."""
        entry = self.entries.get(identity)
        if entry is None or self.leases.is_leased(identity) or entry.carrying:
            return 0
        if (entry.pinned and not pinned) or self.index.num_dependents(identity):
            return 0
        freed = sum(copy.file_bytes for copy in entry.copies.values())
        for tier in list(entry.copies):
            self._drop_copy(entry, self.stocks[tier])
        return freed

    def pin(self, identity: Identity, pinned: bool) -> None:
        """Keep a segment, and by that all it needs, from being evicted; or not any more."""
        self.entries[identity].pinned = pinned
        self._consider(identity)

    def empty_pool(self, tier: str) -> int:
        """Unlink everything that waits for reuse. Returns its bytes."""
        stock, freed = self.stocks[tier], 0
        while (free := stock.pop_free()) is not None:
            freed += free.file_bytes
            self._unlink_free(stock, free)
        return freed

    def worthless(self) -> list[Identity]:
        """Superseded tails and orphans, deepest first."""
        found = [i for i, e in self.entries.items() if e.superseded or self.index.is_orphan(e.meta)]
        return sorted(found, key=lambda identity: -self.entries[identity].meta.end)

    def ancestors(self, identity: Identity) -> Iterator[Identity]:
        """The stored blocks before a segment, nearest first."""
        meta = self.entries[identity].meta
        while depends_on_parent(meta) and (parent := (meta.parent, SegmentKind.BLOCK)) in self.entries:
            yield parent
            meta = self.entries[parent].meta

    def _new_entry(
        self, meta: SegmentMeta, payload_bytes: int, target_tier: str, created_s: float, used_s: float
    ) -> Entry:
        entry = Entry(meta, payload_bytes, created_s, target_tier, heat_of_hit(used_s), used_s)
        entry.pinned = meta.reason is SaveReason.PREFIX
        self.entries[entry.identity] = entry
        self.index.add(meta)
        self.ghosts.forget(meta.key)
        entry.superseded = self.index.covers(meta)
        for tail in self.index.covered_tails(meta):
            self.entries[tail].superseded = True
            self._consider(tail)
        return entry

    def _add_copy(self, entry: Entry, copy: Copy) -> None:
        entry.copies[copy.tier] = copy
        self.stocks[copy.tier].ledger.published_bytes += copy.file_bytes
        self._consider(entry.identity)

    def _wanted_again(self, entry: Entry, meta: SegmentMeta, target_tier: str) -> None:
        if meta.reason is SaveReason.PREFIX:
            entry.pinned = True
        if entry.target_tier != target_tier and target_tier in self.stocks:
            current, wanted = self.stocks[entry.target_tier].spec, self.stocks[target_tier].spec
            entry.target_tier = target_tier if wanted.speed > current.speed else entry.target_tier
            self._ensure_target(entry)

    def _ensure_target(self, entry: Entry) -> None:
        """Have a segment carried to the tier it must reach, if there is room."""
        target = self.stocks[entry.target_tier]
        if entry.target_tier in entry.copies or entry.carrying or target.spec.is_shared_memory:
            return
        size = file_bytes(entry.meta.num_tokens, entry.payload_bytes)
        entry.carrying = True  # also keeps it from being evicted for its own sake
        if isinstance(self._make_room(target, size), Refusal | Coming):
            entry.carrying = False
            self.tally.count("carry_refused")
            return
        target.ledger.reserved_bytes += size
        source = self.path_of(entry.identity, self.fastest_copy(entry).tier)
        temporary = f"{target.spec.path}/tmp/{self.reservations.new_token():x}"  # noqa: S108
        final = self.path_of(entry.identity, entry.target_tier)
        self._actions.append(Carry(entry.identity, source, entry.target_tier, temporary, final, size))

    def _write_stock(self, target_tier: str) -> Stock:
        """Where a worker writes: its own tier if that is shared memory, else the fastest."""
        stock = self.stocks[target_tier]
        return stock if stock.spec.is_shared_memory else min(self.stocks.values(), key=lambda s: s.spec.speed)

    def _make_room(self, stock: Stock, size: int) -> FreeFile | Coming | Refusal | None:
        """Room for `size` bytes: a recycled file (already taken off its books), or None when a new file fits.

        Evicts as little as it can. Bytes of unlinked files that workers still map come back when they have unmapped them: then
        the answer is `Coming`, and nothing more is evicted for it.
        """
        if (free := stock.take_free(size)) is not None:
            return free
        if size > stock.ledger.limit_bytes:
            return Refusal.NO_BUDGET
        while not stock.ledger.fits(size):
            if stock.ledger.free_bytes + stock.ledger.unlinked_bytes >= size:
                return Coming()
            if (oldest := stock.pop_free()) is not None:
                self._unlink_free(stock, oldest)
                continue
            victim = stock.evictor.next_victim()
            if victim is None:
                return Refusal.NO_BUDGET
            freed = self._drop_copy(self.entries[victim], stock, recycle_for=size)
            if freed is not None:
                return freed
        return None

    def _drop_copy(
        self, entry: Entry, stock: Stock, reason: MissReason = MissReason.EVICTED, recycle_for: int | None = None
    ) -> FreeFile | None:
        """Remove one copy. Returns its file, off all books, if it may be overwritten and suits `recycle_for` bytes."""
        copy = entry.copies.pop(stock.spec.name)
        stock.ledger.published_bytes -= copy.file_bytes
        self.tally.dropped(entry.meta, copy.file_bytes, reason)
        path = self.path_of(entry.identity, copy.tier)
        if not entry.copies:
            self._drop_entry(entry, reason)
        else:
            self._consider(entry.identity)
        return self._dispose(stock, copy, path, recycle_for)

    def _dispose(self, stock: Stock, copy: Copy, path: str, recycle_for: int | None) -> FreeFile | None:
        file = FreeFile(path, copy.inode, copy.generation, copy.file_bytes)
        may_recycle = copy.recyclable and stock.spec.is_shared_memory
        if may_recycle and recycle_for is not None and suits(copy.file_bytes, recycle_for):
            return file
        if may_recycle and recycle_for is None and stock.fits_pool(copy.file_bytes):
            self._pool(stock, file)
            return None
        self._actions.append(Unlink(path))
        self._unlinked(stock, (copy.tier, copy.inode), copy.file_bytes)
        return None

    def _drop_entry(self, entry: Entry, reason: MissReason) -> None:
        identity, meta = entry.identity, entry.meta
        del self.entries[identity]
        self.index.remove(identity)
        self.leases.forget_hold(identity)
        self.ghosts.add(meta.key, MissReason.SUPERSEDED if entry.superseded else reason)
        if depends_on_parent(meta):
            self._consider((meta.parent, SegmentKind.BLOCK))
        if meta.kind is SegmentKind.BLOCK:  # its children, if any, are orphans now
            for child in self.index.children(meta.key):
                self._consider(child)

    def _pool(self, stock: Stock, file: FreeFile) -> None:
        path = f"{stock.spec.path}/free/{file.inode:x}-{file.generation:x}"
        self._actions.append(Move(file.path, path))
        stock.add_free(FreeFile(path, file.inode, file.generation, file.file_bytes))

    def _unlink_free(self, stock: Stock, file: FreeFile) -> None:
        self._actions.append(Unlink(file.path))
        self._unlinked(stock, (stock.spec.name, file.inode), file.file_bytes)

    def _unlinked(self, stock: Stock, file: FileRef, num_bytes: int) -> None:
        """A file lost its name: its bytes stay counted while workers map it, and those are told."""
        if self.mappings.unlinked(file, num_bytes):
            stock.ledger.unlinked_bytes += num_bytes
            self._actions += [ForgetMapping(owner, *file) for owner in sorted(self.mappings.mappers(file))]

    # ---- standing ------------------------------------------------------------------------------------------------

    def _consider(self, identity: Identity) -> None:
        if (entry := self.entries.get(identity)) is not None:
            for tier in entry.copies:
                self.stocks[tier].evictor.consider(identity)

    def _standing_in(self, tier: str) -> Callable[[Identity], Standing | None]:
        def standing(identity: Identity) -> Standing | None:
            entry = self.entries.get(identity)
            if entry is None or tier not in entry.copies:
                return None
            backed = self._is_backed(entry, tier)
            may_go = not (self.leases.is_leased(identity) or entry.carrying)
            if not backed:
                may_go = may_go and not entry.pinned and not self.index.num_dependents(identity)
            rank = rank_of(entry, 2 if backed else 1, self.index.is_orphan(entry.meta))
            return Standing(may_go, self.leases.is_held(identity, self._now), rank)

        return standing

    def _is_backed(self, entry: Entry, tier: str) -> bool:
        """Whether a more durable tier has the segment too, so that dropping it here costs next to nothing."""
        speed = self.stocks[tier].spec.speed
        return any(self.stocks[other].spec.speed > speed for other in entry.copies)


def _anything(_identity: Identity) -> bool:
    return True
