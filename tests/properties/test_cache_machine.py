"""The catalog under any sequence of events, against a simulated kernel: files, links, mappings, and who is really reading.

The simulated workers behave as real ones do: they map what they are given, keep mappings for later, unmap when told, may die at any
moment, may finish a write whose reservation has expired. The machine checks after every step what the catalog promises.
"""

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_daemon.actions import Carry, ForgetMapping, Move, Salvage, Unlink
from cache_daemon.catalog import Catalog, CatalogSettings, There
from cache_daemon.entries import Copy, TierSpec
from cache_daemon.holdings import Coming
from cache_daemon.prefix_index import Prompt, depends_on_parent
from cache_daemon.reservations import Reservation
from erllama_host.kv.reuse import Refusal, Reuse
from erllama_host.kv.segment import SegmentKind
from tests.support.rows import BLOCK, Row

KIB = 1024
ROWS = [Row([first, *range(n)]) for first in (1, 2) for n in (BLOCK - 1, 2 * BLOCK - 1, 2 * BLOCK + 2, 3 * BLOCK)]
ROWS.append(Row([1, 0, 1, 2, 9, 9, 9, 9, 9, 9]))
HYBRIDS = [Row([3, *range(n)], cuttable=False) for n in (BLOCK - 1, 2 * BLOCK - 1, 2 * BLOCK + 2, 3 * BLOCK - 1)]
OF_ROWS = [(row, meta) for row in ROWS for meta in [*row.all(), row.logits()]]
OF_ROWS += [(row, meta) for row in HYBRIDS for meta in [*row.blocks(), row.state(), row.logits()]]
SEGMENTS = [meta for _, meta in OF_ROWS]
SEGMENTS_BY_ROW = {row.packed: [meta for one, meta in OF_ROWS if one is row] for row in ROWS + HYBRIDS}
NEEDS = {
    (meta.key, meta.kind): [(row.key(end), SegmentKind.BLOCK) for end in range(BLOCK, meta.covers_from + 1, BLOCK)]
    for row, meta in OF_ROWS
    if meta.kind is not SegmentKind.LOGITS
}
"""What must be there for a segment to be of use: every block before it."""
TIERS = (TierSpec("ram", "ram", "/ram", 72 * KIB), TierSpec("disk", "disk", "/disk", 40 * KIB))
TTL_S = 10.0


@dataclass
class Worker:
    """A process: what it has mapped, reads and writes."""

    name: str
    target: str
    mapped: set = field(default_factory=set)
    leases: dict = field(default_factory=dict)
    writes: dict = field(default_factory=dict)
    forgets: list = field(default_factory=list)

    def uses(self, file):
        return any(file in files for files in self.leases.values()) or file in self.writes.values()


class CacheMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.numbers = itertools.count(1)
        settings_ = CatalogSettings(
            block_tokens=BLOCK, lease_ttl_s=TTL_S, reservation_ttl_s=TTL_S, hold_s=TTL_S, first_id=1000
        )
        self.catalog = Catalog(TIERS, settings_)
        self.holdings = self.catalog.holdings
        self.paths = {}  # path -> (tier, inode)
        self.sizes = {}  # (tier, inode) -> bytes
        self.content = {}  # (tier, inode) -> identity that was written there last
        self.carries = []
        self.workers = {}
        self.open_reservations = {}
        self.seen_stored = set()

    @initialize()
    def start(self):
        self.new_worker("ram")
        self.new_worker("disk")

    def new_worker(self, target):
        name = f"w{next(self.numbers)}"
        self.workers[name] = Worker(name, target)

    def pick(self, data, things):
        return data.draw(st.sampled_from(sorted(things, key=str)))

    # ---- the kernel, and the service's part ----

    def new_file(self, tier, path, size):
        file = (tier, next(self.numbers))
        self.paths[path], self.sizes[file] = file, size
        return file

    def perform(self):
        while actions := self.catalog.take_actions():
            for action in actions:
                self.perform_one(action)

    def perform_one(self, action):
        match action:
            case Unlink(path):
                self.paths.pop(path, None)
            case Move(source, target):
                self.paths[target] = self.paths.pop(source)
            case ForgetMapping(owner, tier, inode):
                if owner in self.workers:
                    self.workers[owner].forgets.append((tier, inode))
            case Carry():
                self.carries.append(action)
            case Salvage():
                self.paths.pop(action.temporary, None)
                file = self.paths.get(action.final)
                self.catalog.salvaged(action, file)
                if file is not None:
                    meta = next(m for m in SEGMENTS if (m.key, m.kind) == action.identity)
                    copy = Copy(action.tier, file[1], 1, self.sizes[file], recyclable=False, verified=True)
                    self.catalog.adopt(meta, copy, 100, self.now, self.now, action.target_tier)

    # ---- events ----

    @rule(data=st.data(), payload=st.sampled_from([3000, 7000]))
    def reserve(self, data, payload):
        self.begin_write(self.workers[self.pick(data, self.workers)], data.draw(st.sampled_from(SEGMENTS)), payload)

    @rule(data=st.data(), segments=st.sampled_from(list(SEGMENTS_BY_ROW.values())), seconds=st.sampled_from([0, 600]))
    def save_row(self, data, segments, seconds):
        """What a worker does most of the time; later rows are worth more than earlier ones, or just as much."""
        worker = self.workers[self.pick(data, self.workers)]
        self.now += seconds
        for meta in segments:
            token = self.begin_write(worker, meta, 3000)
            if token is not None:
                self.finish_write(worker, token)

    def begin_write(self, worker, meta, payload):
        result = self.catalog.reserve(worker.name, worker.target, meta, payload, self.now)
        self.perform()
        stored = (meta.key, meta.kind) in self.holdings.entries
        assert isinstance(result, There) == stored
        assert isinstance(result, Reservation | There | Coming | Refusal)
        if isinstance(result, Reservation):
            file = self.paths.get(result.path)
            assert (file is not None) == bool(result.inode)
            if file is None:
                file = self.new_file(result.tier, result.path, result.file_bytes)
            self.check_nobody_reads(file)
            self.content[file] = None
            worker.mapped.add(file)
            worker.writes[result.token] = file
            self.open_reservations[result.token] = result
            return result.token
        return None

    def check_nobody_reads(self, file):
        for worker in self.workers.values():
            assert not any(file in files for files in worker.leases.values()), "overwritten under a reader"

    def writers(self):
        return [w for w in self.workers.values() if w.writes]

    @precondition(lambda self: self.writers())
    @rule(data=st.data(), outcome=st.sampled_from(["announce", "announce", "abort", "link only"]))
    def end_write(self, data, outcome):
        worker = data.draw(st.sampled_from(self.writers()))
        token = data.draw(st.sampled_from(sorted(worker.writes)))
        file, reservation = worker.writes[token], self.open_reservations[token]
        if outcome == "abort":
            del worker.writes[token]
            if token not in self.catalog.reservations:  # it has expired: such a file is unmapped at once
                worker.mapped.discard(file)
            self.catalog.abort(worker.name, token, file[1], self.now)
            self.perform()
        elif outcome == "announce":
            self.finish_write(worker, token)
        elif self.paths.get(reservation.path) == file:  # else link(2) fails: the reservation was lost
            final = self.holdings.path_of(reservation.identity, reservation.tier)
            assert final not in self.paths
            self.paths[final] = self.paths.pop(reservation.path)
            self.content[file] = reservation.identity
            self.die(worker)  # before it can announce

    def finish_write(self, worker, token):
        file, reservation = worker.writes[token], self.open_reservations[token]
        if self.paths.get(reservation.path) == file:  # else link(2) fails: the reservation was lost
            final = self.holdings.path_of(reservation.identity, reservation.tier)
            assert final not in self.paths
            self.paths[final] = self.paths.pop(reservation.path)
            self.content[file] = reservation.identity
            del worker.writes[token]
            shown = self.catalog.announce(
                worker.name, token, file[1], reservation.generation, 100, self.sizes[file], self.now
            )
            assert shown
        self.perform()

    @rule(data=st.data(), row=st.sampled_from(ROWS + HYBRIDS), cautious=st.booleans())
    def look_up(self, data, row, cautious):
        worker = self.workers[self.pick(data, self.workers)]
        reuse = Reuse.CUT if row.cuttable else Reuse.STATE
        prompt = Prompt(row.space.root, row.chain.block_keys, row.packed, row.chain.key(), reuse)
        granted = self.catalog.lookup(worker.name, prompt, self.now, cautious=cautious)
        assert (granted.lease == 0) == (not granted.match.parts)
        assert (granted.miss_reason is None) == (granted.match.hit_len == row.num_tokens)
        if granted.lease:
            files = set()
            for identity in [i for i, _ in granted.match.parts] + (
                [granted.match.logits] if granted.match.logits else []
            ):
                copy = self.holdings.fastest_copy(self.holdings.entries[identity])
                file = self.paths[self.holdings.path_of(identity, copy.tier)]
                assert file == (copy.tier, copy.inode) and self.content[file] == identity
                files.add(file)
            worker.leases[granted.lease] = files
            worker.mapped |= files
        self.perform()

    def readers(self):
        return [w for w in self.workers.values() if w.leases]

    @precondition(lambda self: self.readers())
    @rule(data=st.data())
    def release(self, data):
        worker = data.draw(st.sampled_from(self.readers()))
        lease = data.draw(st.sampled_from(sorted(worker.leases)))
        del worker.leases[lease]
        self.catalog.release(lease, worker.name)
        self.perform()

    @rule(data=st.data())
    def worker_dies(self, data):
        self.die(self.workers[self.pick(data, self.workers)])

    def die(self, worker):
        del self.workers[worker.name]
        self.catalog.worker_gone(worker.name, self.now)
        self.perform()
        self.new_worker(worker.target)

    @rule(data=st.data())
    def unmap(self, data):
        worker = self.workers[self.pick(data, self.workers)]
        named = [file for file in worker.forgets if file[1] > 0]  # else it stands for an expired reservation
        for file in [file for file in named if not worker.uses(file)]:
            worker.forgets.remove(file)
            worker.mapped.discard(file)
            self.catalog.forgotten(worker.name, file)
        self.perform()

    @rule(seconds=st.sampled_from([1.0, 6.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.catalog.expire(self.now)
        self.perform()

    @precondition(lambda self: self.carries)
    @rule(data=st.data(), arrives=st.booleans())
    def carry_ends(self, data, arrives):
        carry = self.carries.pop(data.draw(st.integers(0, len(self.carries) - 1)))
        if arrives:
            file = self.new_file(carry.tier, carry.final, carry.file_bytes)
            self.content[file] = carry.identity
            self.catalog.carrying.carried(carry, file[1], 1)
        else:
            self.catalog.carrying.carry_failed(carry, no_space=False)
        self.perform()

    @rule(data=st.data(), tier=st.sampled_from(["ram", "disk"]))
    def evict_by_hand(self, data, tier):
        leased = {i for i in self.holdings.entries if self.catalog.leases.is_leased(i)}
        for identity in (
            data.draw(st.lists(st.sampled_from(sorted(self.holdings.entries)), max_size=3))
            if self.holdings.entries
            else []
        ):
            self.holdings.evict_entry(identity)
        self.holdings.trim(tier, 24 * KIB)
        assert leased <= set(self.holdings.entries)
        self.perform()

    # ---- what must hold ----

    @invariant()
    def bytes_stay_within_the_budget(self):
        named = set(self.paths.values())
        for tier in TIERS:
            ledger = self.holdings.stocks[tier.name].ledger
            mapped = {f for w in self.workers.values() for f in w.mapped}
            physical = sum(size for f, size in self.sizes.items() if f[0] == tier.name and (f in named or f in mapped))
            carried = sum(c.file_bytes for c in self.carries if c.tier == tier.name)
            assert physical + carried <= ledger.used_bytes <= ledger.limit_bytes
            assert (
                min(ledger.published_bytes, ledger.reserved_bytes, ledger.recyclable_bytes, ledger.unlinked_bytes) >= 0
            )

    @invariant()
    def books_are_right(self):
        for name, stock in self.holdings.stocks.items():
            copies = [e.copies[name].file_bytes for e in self.holdings.entries.values() if name in e.copies]
            assert stock.ledger.published_bytes == sum(copies)
            assert stock.ledger.recyclable_bytes == sum(file.file_bytes for file in stock.pool)

    @invariant()
    def everything_listed_is_there(self):
        for identity, entry in self.holdings.entries.items():
            assert entry.copies
            for tier, copy in entry.copies.items():
                file = self.paths[self.holdings.path_of(identity, tier)]
                assert file == (tier, copy.inode) and self.content[file] == identity

    @invariant()
    def no_orphans(self):
        stored, writing = self.holdings.entries, self.catalog.reservations
        for meta in [entry.meta for entry in stored.values()] + [one.meta for one in self.open_now()]:
            missing = [one for one in NEEDS.get((meta.key, meta.kind), []) if one not in stored]
            assert not self.seen_stored.intersection(missing), "an ancestor was evicted before its descendant"
            parent = (meta.parent, SegmentKind.BLOCK)
            if parent in missing and not writing.is_writing(parent) and (meta.key, meta.kind) in stored:
                # Only because its parent's writer failed after it had been promised: then it is the first to go.
                assert depends_on_parent(meta) and self.holdings.index.is_orphan(meta)
        self.seen_stored = set(stored)

    def open_now(self):
        return [one for token, one in self.open_reservations.items() if token in self.catalog.reservations]

    def teardown(self):
        """When everybody has left and everything is evicted, not a byte is missing."""
        for worker in list(self.workers.values()):
            self.catalog.worker_gone(worker.name, self.now, hold=False)
        self.workers.clear()
        self.perform()
        for carry in self.carries:
            self.catalog.carrying.carry_failed(carry, no_space=False)
        while sum(self.holdings.trim(tier, 0) for tier in ("ram", "disk")):
            pass  # a block waits for what needs it, which may lie in the other tier
        self.perform()
        for stock in self.holdings.stocks.values():
            assert stock.ledger.used_bytes == 0
        assert self.paths == {}


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
