"""What is stored: entries, their copies in tiers, the bytes these take, and which of them goes when room is needed. Pure.

Owner: the catalog, which adds readers and writers to it. What must happen to files is appended to `actions`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cache_daemon.actions import Action, Damaged, ForgetMapping, Move, Unlink
from cache_daemon.entries import Copy, Entry, FileRef, Identity, TierSpec
from cache_daemon.eviction import Evictor, Standing, add_heat, heat_of_hit, rank_of
from cache_daemon.ghosts import Ghosts
from cache_daemon.leases import LeaseTable
from cache_daemon.ledger import Ledger
from cache_daemon.mappings import MappingTable
from cache_daemon.prefix_index import PrefixIndex, depends_on_parent
from cache_daemon.reservations import ReservationTable
from cache_daemon.stock import FreeFile, Stock, suits
from cache_daemon.tally import Tally
from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta, file_name


@dataclass(frozen=True, slots=True)
class Coming:
    """Room is being made: unlinked files wait for workers to unmap them. Ask again when that changes."""


class Holdings:
    """All entries and tiers."""

    def __init__(
        self, tiers: Iterable[TierSpec], block_tokens: int, leases: LeaseTable, reservations: ReservationTable
    ) -> None:
        """
        Args:
            leases, reservations: say what must stay; owned by the catalog.
        """
        self.index = PrefixIndex(block_tokens)
        self.entries: dict[Identity, Entry] = {}
        self.mappings = MappingTable()
        self.ghosts = Ghosts()
        self.tally = Tally()
        self.actions: list[Action] = []
        self.now = 0.0
        """Of the event being handled; set by the catalog."""
        self.touched: set[Identity] = set()
        """Used since their file times were set last; the service mirrors `last_used_s` to the files in batches."""
        self._leases = leases
        self._reservations = reservations
        self.stocks: dict[str, Stock] = {spec.name: self._new_stock(spec) for spec in tiers}

    def _new_stock(self, spec: TierSpec) -> Stock:
        ledger = Ledger(spec.budget_bytes, spec.budget_bytes)
        return Stock(spec, ledger, Evictor(self._standing_in(spec.name)))

    # ---- looking -------------------------------------------------------------------------------------------------

    def fastest_copy(self, entry: Entry) -> Copy:
        """The copy to read."""
        if len(entry.copies) == 1:
            return next(iter(entry.copies.values()))
        return min(entry.copies.values(), key=lambda copy: self.stocks[copy.tier].spec.speed)

    def is_in_memory(self, entry: Entry) -> bool:
        """Whether readers get it from shared memory."""
        return self.stocks[self.fastest_copy(entry).tier].spec.is_shared_memory

    def path_of(self, identity: Identity, tier: str) -> str:
        """Final path of a segment in a tier."""
        return f"{self.stocks[tier].spec.path}/{file_name(*identity)}"

    def worthless(self) -> list[Identity]:
        """Superseded tails, orphans and all that hangs below them, deepest first."""
        found = dict.fromkeys(i for i, e in self.entries.items() if e.superseded or self.index.is_orphan(e.meta))
        todo = list(found)
        while todo:
            key, kind = todo.pop()
            for child in self.index.children(key) if kind is SegmentKind.BLOCK else ():
                if child not in found and depends_on_parent(self.entries[child].meta):
                    found[child] = None
                    todo.append(child)
        return sorted(found, key=lambda identity: -self.entries[identity].meta.end)

    # ---- adding --------------------------------------------------------------------------------------------------

    def new_entry(
        self, meta: SegmentMeta, payload_bytes: int, target_tier: str, created_s: float, used_s: float
    ) -> Entry:
        entry = Entry(meta, payload_bytes, created_s, target_tier, heat_of_hit(used_s), used_s)
        entry.pinned = meta.reason is SaveReason.PREFIX
        self.entries[entry.identity] = entry
        self.tally.entry_changed(meta, 1, payload_bytes)
        self.index.add(meta)
        self.ghosts.forget(meta.key)
        entry.superseded = self.index.covers(meta)
        for tail in self.index.covered_tails(meta):
            self.entries[tail].superseded = True
            self.consider(tail)
        return entry

    def add_copy(self, entry: Entry, copy: Copy) -> None:
        entry.copies[copy.tier] = copy
        stock = self.stocks[copy.tier]
        stock.num_segments += 1
        stock.ledger.published_bytes += copy.file_bytes
        self.consider(entry.identity)

    def touch(self, identities: Iterable[Identity], owner: str, wall_s: float) -> None:
        """Hits: `owner` is about to read the fastest copies."""
        heat = heat_of_hit(wall_s)
        for identity in identities:
            entry = self.entries[identity]
            entry.hits += 1
            entry.heat = add_heat(entry.heat, heat)
            entry.last_used_s = wall_s
            copy = self.fastest_copy(entry)
            self.mappings.add(owner, (copy.tier, copy.inode))
        self.touched.update(identities)

    # ---- room ----------------------------------------------------------------------------------------------------

    def make_room(self, stock: Stock, size: int, spare: Identity | None = None) -> FreeFile | Coming | Refusal | None:
        """Room for `size` bytes: a recycled file (already taken off its books), or None when a new file fits.

        Evicts as little as it can, and not `spare`, on which the segment that needs the room depends: a row that is larger than the
        tier keeps its beginning. Bytes of unlinked files that workers still map come back when they have unmapped them: then
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
            victim = self._next_victim(stock, spare)
            if victim is None:
                return Refusal.NO_BUDGET
            freed = self._drop_copy(self.entries[victim], stock, recycle_for=size)
            if freed is not None:
                return freed
        return None

    @staticmethod
    def _next_victim(stock: Stock, spare: Identity | None) -> Identity | None:
        victim = stock.evictor.next_victim()
        if victim is not None and victim == spare:
            victim = stock.evictor.next_victim()
            stock.evictor.consider(spare)
        return victim

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

    def empty_pool(self, tier: str) -> int:
        """Unlink everything that waits for reuse. Returns its bytes."""
        stock, freed = self.stocks[tier], 0
        while (free := stock.pop_free()) is not None:
            freed += free.file_bytes
            self._unlink_free(stock, free)
        return freed

    def note_full(self, tier: str) -> None:
        """The filesystem is full although the budget is not: what is used now is all there is, until it is looked at again."""
        ledger = self.stocks[tier].ledger
        ledger.limit_bytes = min(ledger.limit_bytes, ledger.used_bytes)
        self.tally.count("no_space")

    # ---- dropping ------------------------------------------------------------------------------------------------

    def evict_entry(self, identity: Identity, *, pinned: bool = False) -> int:
        """Drop all copies of a segment, unless it is leased, pinned, carried or needed. Returns the bytes that went."""
        entry = self.entries.get(identity)
        if entry is None or self._leases.is_leased(identity) or entry.carrying:
            return 0
        if (entry.pinned and not pinned) or self._is_needed(identity):
            return 0
        freed = sum(copy.file_bytes for copy in entry.copies.values())
        for tier in list(entry.copies):
            self._drop_copy(entry, self.stocks[tier])
        return freed

    def drop_corrupt(self, identity: Identity, tier: str | None = None) -> None:
        """A copy of a segment (by default the fastest) is damaged, or not there: remove it."""
        entry = self.entries.get(identity)
        if entry is None or (tier is not None and tier not in entry.copies):
            return
        copy = entry.copies[tier] if tier is not None else self.fastest_copy(entry)
        self.tally.count("corrupt")
        self.actions.append(Damaged(self.path_of(identity, copy.tier)))
        copy.recyclable = False
        self._drop_copy(entry, self.stocks[copy.tier], MissReason.CORRUPT)

    def _drop_copy(
        self, entry: Entry, stock: Stock, reason: MissReason = MissReason.EVICTED, recycle_for: int | None = None
    ) -> FreeFile | None:
        """Remove one copy. Returns its file, off all books, if it may be overwritten and suits `recycle_for` bytes."""
        copy = entry.copies.pop(stock.spec.name)
        stock.evictor.forget(entry.identity)
        stock.num_segments -= 1
        stock.ledger.published_bytes -= copy.file_bytes
        self.tally.dropped(entry.meta, copy.file_bytes, reason)
        path = self.path_of(entry.identity, copy.tier)
        if not entry.copies:
            self._drop_entry(entry, reason)
        else:
            self.consider(entry.identity)
        return self._dispose(stock, copy, path, recycle_for)

    def _drop_entry(self, entry: Entry, reason: MissReason) -> None:
        identity, meta = entry.identity, entry.meta
        del self.entries[identity]
        self.touched.discard(identity)
        self.tally.entry_changed(meta, -1, entry.payload_bytes)
        self.index.remove(identity)
        self._leases.forget_hold(identity)
        self.ghosts.add(meta.key, MissReason.SUPERSEDED if entry.superseded else reason)
        if depends_on_parent(meta):
            self.consider((meta.parent, SegmentKind.BLOCK))
        if meta.kind is SegmentKind.BLOCK:  # its children, if any, are orphans now
            for child in self.index.children(meta.key):
                self.consider(child)

    def _dispose(self, stock: Stock, copy: Copy, path: str, recycle_for: int | None) -> FreeFile | None:
        file = FreeFile(path, copy.inode, copy.generation, copy.file_bytes)
        may_recycle = copy.recyclable and stock.spec.is_shared_memory
        if may_recycle and recycle_for is not None and suits(copy.file_bytes, recycle_for):
            return file
        if may_recycle and recycle_for is None and stock.fits_pool(copy.file_bytes):
            self.put_into_pool(stock, file)
            return None
        self.actions.append(Unlink(path))
        self.drop_name(stock, (copy.tier, copy.inode), copy.file_bytes)
        return None

    def put_into_pool(self, stock: Stock, file: FreeFile) -> None:
        path = f"{stock.spec.path}/free/{file.inode:x}-{file.generation:x}"
        self.actions.append(Move(file.path, path))
        stock.add_free(FreeFile(path, file.inode, file.generation, file.file_bytes))

    def _unlink_free(self, stock: Stock, file: FreeFile) -> None:
        self.actions.append(Unlink(file.path))
        self.drop_name(stock, (stock.spec.name, file.inode), file.file_bytes)

    def drop_name(self, stock: Stock, file: FileRef, num_bytes: int) -> None:
        """A file lost its name: its bytes stay counted while workers map it, and those are told."""
        if self.mappings.unlinked(file, num_bytes):
            stock.ledger.unlinked_bytes += num_bytes
            self.actions += [ForgetMapping(owner, *file) for owner in sorted(self.mappings.mappers(file))]

    def unmapped(self, file: FileRef, freed_bytes: int) -> None:
        """The last worker that mapped an unlinked file has let go of it."""
        self.stocks[file[0]].ledger.unlinked_bytes -= freed_bytes

    # ---- standing ------------------------------------------------------------------------------------------------

    def pin(self, identity: Identity, pinned: bool) -> None:
        """Keep a segment, and by that all it needs, from being evicted; or not any more."""
        self.entries[identity].pinned = pinned
        self.consider(identity)

    def returned(self, identity: Identity) -> None:
        """The last lease on a segment has ended."""
        if (entry := self.entries.get(identity)) is not None:
            for tier in entry.copies:
                self.stocks[tier].evictor.returned(identity)

    def consider(self, identity: Identity) -> None:
        if (entry := self.entries.get(identity)) is not None:
            for tier in entry.copies:
                self.stocks[tier].evictor.consider(identity)

    def _standing_in(self, tier: str) -> Callable[[Identity], Standing | None]:
        def standing(identity: Identity) -> Standing | None:
            entry = self.entries.get(identity)
            if entry is None or tier not in entry.copies:
                return None
            backed = self._is_backed(entry, tier)
            may_go = not (self._leases.is_leased(identity) or entry.carrying)
            if not backed:
                may_go = may_go and not entry.pinned and not self._is_needed(identity)
            rank = rank_of(entry, 2 if backed else 1, self.index.is_orphan(entry.meta))
            return Standing(may_go, self._leases.is_held(identity, self.now), rank)

        return standing

    def _is_needed(self, identity: Identity) -> bool:
        """Whether segments that are stored, or being written, need this one before them."""
        return self.index.num_dependents(identity) > 0 or self._reservations.has_children(identity)

    def _is_backed(self, entry: Entry, tier: str) -> bool:
        """Whether a more durable tier has the segment too, so that dropping it here costs next to nothing."""
        speed = self.stocks[tier].spec.speed
        return any(self.stocks[other].spec.speed > speed for other in entry.copies)
