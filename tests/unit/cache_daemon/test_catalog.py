"""What the catalog answers in single situations; sequences of events are the machine's (tests/properties/test_cache_machine.py)."""

import pytest

from cache_daemon.actions import Carry, ForgetMapping, Move, Salvage, Unlink
from cache_daemon.catalog import Catalog, CatalogSettings, There
from cache_daemon.entries import Copy, TierSpec
from cache_daemon.holdings import Coming
from cache_daemon.prefix_index import Prompt
from cache_daemon.reservations import Reservation
from erllama_host.kv.reuse import MissReason, Refusal, Reuse
from erllama_host.kv.segment import SaveReason, SegmentKind
from erllama_host.protocol import unpack_tokens
from tests.support.rows import BLOCK, OTHER_SPACE, Row

KIB = 1024
FILE = 8 * KIB  # one page of header, one of payload


def catalog(ram: int = 10 * FILE, disk: int = 10 * FILE) -> Catalog:
    tiers = [TierSpec("ram", "ram", "/ram", ram), TierSpec("disk", "disk", "/disk", disk)]
    return Catalog(tiers, CatalogSettings(block_tokens=BLOCK, first_id=1))


class Files:
    """Hands out inode numbers."""

    last = 0

    @classmethod
    def new(cls) -> int:
        cls.last += 1
        return cls.last


def put(cat: Catalog, metas, owner="w", tier="ram", now=0.0) -> None:
    for meta in metas:
        held = cat.reserve(owner, tier, meta, 4 * KIB, now)
        assert isinstance(held, Reservation), held
        inode = held.inode or Files.new()
        assert cat.announce(owner, held.token, inode, held.generation, 4 * KIB, held.file_bytes, now)


def prompt(row: Row, reuse: Reuse = Reuse.CUT) -> Prompt:
    return Prompt(row.space.root, row.chain.block_keys, row.packed, row.chain.key(), reuse)


def ask(cat: Catalog, row: Row, owner="w", now=0.0, **fields):
    return cat.lookup(owner, prompt(row), now, **fields)


ROW = Row(range(3 * BLOCK + 4))


def test_stored_rows_are_not_written_again():
    cat = catalog()
    put(cat, ROW.all())
    assert all(isinstance(cat.reserve("w2", "ram", meta, 4 * KIB, 0.0), There) for meta in ROW.all())


def test_only_one_writes():
    cat = catalog()
    assert isinstance(cat.reserve("w", "ram", ROW.blocks()[0], 4 * KIB, 0.0), Reservation)
    assert cat.reserve("w2", "ram", ROW.blocks()[0], 4 * KIB, 0.0) is Refusal.BEING_WRITTEN


def test_refusals():
    cat = catalog(ram=2 * FILE)
    assert cat.reserve("w", "nowhere", ROW.blocks()[0], 4 * KIB, 0.0) is Refusal.UNKNOWN_TIER
    assert cat.reserve("w", "ram", ROW.blocks()[1], 4 * KIB, 0.0) is Refusal.NO_PARENT
    assert cat.reserve("w", "ram", ROW.blocks()[0], 40 * KIB, 0.0) is Refusal.NO_BUDGET
    cat.recovering = True
    assert cat.reserve("w", "ram", ROW.blocks()[0], 4 * KIB, 0.0) is Refusal.RECOVERING


@pytest.mark.parametrize("kind", ["never", "evicted", "gated", "elsewhere", "parent", "superseded"])
def test_misses_are_explained(kind):
    cat = catalog(ram=4 * FILE)
    first = Row([7, *range(BLOCK - 1)])
    if kind == "evicted":
        put(cat, first.blocks())
        cat.holdings.evict_entry((first.key(BLOCK), SegmentKind.BLOCK))
    elif kind == "gated":
        assert cat.reserve("w", "ram", first.blocks()[0], 100 * KIB, 0.0) is Refusal.NO_BUDGET
    elif kind == "elsewhere":
        put(cat, Row([7, *range(BLOCK - 1)], OTHER_SPACE).blocks())
    elif kind == "superseded":
        tail = Row([7, 0, 1])
        put(cat, [tail.tail(), *first.blocks()])
        cat.holdings.evict_entry((tail.chain.key(), SegmentKind.TAIL))
    asked = Row([*unpack(first), 99]) if kind == "superseded" else first
    parent = {"parent": b"?" * 32, "superseded": Row([7, 0, 1]).chain.key()}.get(kind)
    expected = {
        "never": MissReason.NEVER_SEEN,
        "evicted": MissReason.EVICTED,
        "gated": MissReason.GATED,
        "elsewhere": MissReason.OTHER_NAMESPACE,
        "parent": MissReason.UNKNOWN_PARENT,
        "superseded": MissReason.SUPERSEDED,
    }[kind]
    assert ask(cat, asked, parent_key=parent).miss_reason is expected


def unpack(row: Row) -> list[int]:
    return unpack_tokens(row.packed)


def test_divergence_is_told_to_the_token():
    cat = catalog()
    put(cat, ROW.all())
    other = Row([*range(BLOCK + 5), 999, *range(30)])
    granted = ask(cat, other)
    assert granted.match.hit_len == granted.match.diverged_at == BLOCK + 5
    longer = Row([*range(3 * BLOCK + 4), 1, 2])
    assert ask(cat, longer).match.diverged_at is None


def test_full_tier_evicts_the_leaf_least_worth_and_recycles_its_file():
    cat = catalog(ram=4 * FILE)
    put(cat, Row([1, *range(2 * BLOCK - 1)]).blocks(), now=0.0)
    put(cat, Row([2, *range(2 * BLOCK - 1)]).blocks(), now=100.0)
    cat.take_actions()
    put(cat, Row([3, *range(BLOCK - 1)]).blocks(), now=200.0)
    moves = [action for action in cat.take_actions() if isinstance(action, Move)]
    old_leaf = Row([1, *range(2 * BLOCK - 1)]).blocks()[1]
    assert [move.source for move in moves] == [cat.holdings.path_of((old_leaf.key, old_leaf.kind), "ram")]
    assert cat.holdings.tally.counters["recycled"] == 1
    assert cat.holdings.stocks["ram"].ledger.used_bytes == 4 * FILE


def test_leased_is_not_evicted_and_pinned_neither():
    cat = catalog(ram=2 * FILE)
    pinned, leased = Row([1, *range(BLOCK - 1)]), Row([2, *range(BLOCK - 1)])
    put(cat, pinned.blocks(SaveReason.PREFIX))
    put(cat, leased.blocks())
    lease = ask(cat, leased).lease
    third = Row([3, *range(BLOCK - 1)]).blocks()[0]
    assert cat.reserve("w", "ram", third, 4 * KIB, 0.0) is Refusal.NO_BUDGET
    assert cat.holdings.evict_entry((leased.key(BLOCK), SegmentKind.BLOCK)) == 0
    cat.release(lease, "w")
    assert isinstance(cat.reserve("w", "ram", third, 4 * KIB, 0.0), Reservation)
    assert (pinned.key(BLOCK), SegmentKind.BLOCK) in cat.holdings.entries


def test_saving_a_stored_segment_as_a_prefix_pins_it():
    cat = catalog()
    put(cat, ROW.blocks())
    block = ROW.blocks(SaveReason.PREFIX)[2]
    assert isinstance(cat.reserve("w", "ram", block, 4 * KIB, 0.0), There)
    assert cat.holdings.entries[block.key, block.kind].pinned
    cat.holdings.trim("ram", 0)
    assert len(cat.holdings.entries) == 3  # what it needs stays with it


def test_bytes_of_unlinked_files_are_counted_until_they_are_unmapped():
    cat = catalog(ram=2 * FILE)
    row = Row([1, *range(BLOCK - 1)])
    put(cat, row.blocks(), owner="writer")
    cat.leases.grant("slow", [(row.key(BLOCK), SegmentKind.BLOCK)], 0.0)
    cat.expire(100.0)  # its lease ends by TTL: never recycled
    inode = cat.holdings.entries[row.key(BLOCK), SegmentKind.BLOCK].copies["ram"].inode
    big = Row([2, *range(BLOCK - 1)]).blocks()[0]
    cat.take_actions()
    assert isinstance(cat.reserve("w", "ram", big, 12 * KIB, 100.0), Coming)
    path = cat.holdings.path_of((row.key(BLOCK), SegmentKind.BLOCK), "ram")
    assert cat.take_actions() == [Unlink(path), ForgetMapping("writer", "ram", inode)]
    assert cat.holdings.stocks["ram"].ledger.unlinked_bytes == FILE
    cat.forgotten("writer", ("ram", inode))
    assert isinstance(cat.reserve("w", "ram", big, 12 * KIB, 100.0), Reservation)


def test_death_of_a_writer_frees_its_bytes_and_looks_at_what_it_left():
    cat = catalog()
    held = cat.reserve("w", "ram", ROW.blocks()[0], 4 * KIB, 0.0)
    cat.worker_gone("w", 1.0)
    final = cat.holdings.path_of(held.identity, "ram")
    action = Salvage("ram", held.identity, held.path, final, "ram", ("ram", 0), held.file_bytes)
    assert cat.take_actions() == [action]
    assert cat.holdings.stocks["ram"].ledger.used_bytes == FILE, "counted until that is found out"
    cat.salvaged(action, None)
    assert cat.holdings.stocks["ram"].ledger.used_bytes == 0
    assert isinstance(cat.reserve("w2", "ram", ROW.blocks()[0], 4 * KIB, 1.0), Reservation)


def test_expired_reservation_is_counted_until_its_writer_lets_go():
    cat = catalog()
    held = cat.reserve("w", "ram", ROW.blocks()[0], 4 * KIB, 0.0)
    cat.expire(30.0)
    (action,) = cat.take_actions()
    cat.salvaged(action, None)
    ledger = cat.holdings.stocks["ram"].ledger
    assert (ledger.reserved_bytes, ledger.unlinked_bytes) == (0, FILE)
    assert not cat.renew("w", held.token, 31.0)
    cat.abort("w", held.token, Files.new(), 31.0)
    assert ledger.used_bytes == 0


def test_segments_of_dead_readers_are_not_offered_to_the_cautious():
    cat = catalog()
    put(cat, ROW.all())
    ask(cat, ROW, owner="poisoned")
    cat.worker_gone("poisoned", 1.0)
    assert ask(cat, ROW, now=2.0).match.hit_len == ROW.num_tokens
    assert ask(cat, ROW, now=2.0, cautious=True).match.hit_len == 0


def test_disk_models_are_carried_down_and_then_dropped_from_memory_first():
    cat = catalog(ram=3 * FILE)
    rows = [Row([n, *range(BLOCK - 1)]) for n in range(3)]
    for row in rows[:2]:
        put(cat, row.blocks(), tier="disk")
    carries = [action for action in cat.take_actions() if isinstance(action, Carry)]
    assert [carry.tier for carry in carries] == ["disk", "disk"]
    assert cat.holdings.stocks["disk"].ledger.reserved_bytes == 2 * FILE
    assert cat.holdings.trim("ram", 0) == 0  # being carried: stays
    for carry in carries:
        cat.carrying.carried(carry, Files.new(), 1)
    put(cat, rows[2].blocks(), tier="ram", now=-1e6)  # older, but the only copy
    cat.holdings.trim("ram", FILE)
    assert [set(entry.copies) for entry in cat.holdings.entries.values()] == [{"disk"}, {"disk"}, {"ram"}]
    assert all(ask(cat, row).match.hit_len == BLOCK for row in rows)


def test_full_disk_leaves_the_segment_in_memory():
    cat = catalog()
    put(cat, ROW.blocks()[:1], tier="disk")
    (carry,) = [action for action in cat.take_actions() if isinstance(action, Carry)]
    cat.carrying.carry_failed(carry, no_space=True)
    ledger = cat.holdings.stocks["disk"].ledger
    assert ledger.used_bytes == ledger.limit_bytes == 0
    assert ask(cat, ROW).match.hit_len == BLOCK


def test_corrupt_copy_falls_back_to_the_other_tier():
    cat = catalog()
    put(cat, ROW.blocks()[:1], tier="disk")
    (carry,) = [action for action in cat.take_actions() if isinstance(action, Carry)]
    cat.carrying.carried(carry, Files.new(), 1)
    identity = (ROW.key(BLOCK), SegmentKind.BLOCK)
    cat.holdings.drop_corrupt(identity)
    assert set(cat.holdings.entries[identity].copies) == {"disk"}
    cat.holdings.drop_corrupt(identity)
    assert ask(cat, ROW).miss_reason is MissReason.CORRUPT


def test_children_of_a_corrupt_block_wait_for_it_to_be_saved_again():
    cat = catalog()
    put(cat, ROW.all())
    cat.holdings.drop_corrupt((ROW.key(BLOCK), SegmentKind.BLOCK))
    assert ask(cat, ROW).match.hit_len == 0
    put(cat, ROW.blocks()[:1])
    assert ask(cat, ROW).match.hit_len == ROW.num_tokens


def test_superseded_tails_go_first():
    cat = catalog()
    tail = Row(range(BLOCK + 4)).tail()
    put(cat, [*Row(range(BLOCK)).blocks(), tail], now=1e6)
    put(cat, ROW.blocks()[1:], now=0.0)
    assert cat.holdings.worthless() == [(tail.key, tail.kind)]
    cat.holdings.trim("ram", 3 * FILE)
    assert (tail.key, tail.kind) not in cat.holdings.entries and len(cat.holdings.entries) == 3


def test_snapshot_and_whole_models():
    cat = catalog()
    row = Row(range(2 * BLOCK + 3), cuttable=False)
    put(cat, [row.snapshot(0), row.logits()])
    granted = cat.lookup("w", prompt(row, Reuse.STATE), 0.0)
    assert granted.match.hit_len == row.num_tokens and granted.match.logits is not None
    longer = Row(range(2 * BLOCK + 9), cuttable=False)
    assert cat.lookup("w", prompt(longer, Reuse.STATE), 0.0).match.hit_len == row.num_tokens
    shorter = Row(range(2 * BLOCK + 2), cuttable=False)
    assert cat.lookup("w", prompt(shorter, Reuse.STATE), 0.0).match.hit_len == 0


def test_adopted_files_are_never_recycled():
    cat = catalog(ram=FILE)
    meta = Row([1, *range(BLOCK - 1)]).blocks()[0]
    copy = Copy("ram", Files.new(), 1, FILE, recyclable=False, verified=False)
    cat.adopt(meta, copy, 4 * KIB, 0.0, 0.0, "ram")
    held = cat.reserve("w", "ram", Row([2, *range(BLOCK - 1)]).blocks()[0], 4 * KIB, 0.0)
    assert isinstance(held, Reservation) and held.inode == 0
    assert [type(action) for action in cat.take_actions()] == [Unlink]


def carried(cat: Catalog) -> None:
    """Carry out what was decided, as far as copies and mappings are concerned."""
    while actions := cat.take_actions():
        for action in actions:
            if isinstance(action, Carry):
                cat.carrying.carried(action, Files.new(), 1)
            elif isinstance(action, ForgetMapping):
                cat.forgotten(action.owner, (action.tier, action.inode))


def tiers_of(cat: Catalog, row: Row) -> list[str]:
    return sorted(cat.holdings.entries[(row.blocks()[0].key, SegmentKind.BLOCK)].copies)


def test_what_finds_no_room_on_a_full_disk_is_carried_when_there_is_some():
    cat = catalog(disk=2 * FILE)
    rows = [Row([first, *range(BLOCK - 1)]) for first in range(3)]
    for row in rows[:2]:
        put(cat, row.blocks(), tier="disk")
        carried(cat)
        cat.holdings.trim("ram", 0)
        cat.release(ask(cat, row, owner="reader").lease, "reader")  # from disk: it stays mapped
    put(cat, rows[2].blocks(), tier="disk")
    assert tiers_of(cat, rows[2]) == ["ram"], "the reader has not let go of what was evicted for it"
    carried(cat)
    cat.carrying.retry()
    carried(cat)
    assert tiers_of(cat, rows[2]) == ["disk", "ram"]
    assert cat.holdings.tally.counters["carry_deferred"] == 1


def test_what_waits_for_room_in_vain_is_forgotten_when_it_is_gone():
    cat = catalog(ram=2 * FILE, disk=FILE)
    pinned = Row([99, *range(BLOCK - 1)])
    put(cat, pinned.blocks(SaveReason.PREFIX), tier="disk")
    carried(cat)
    for first in range(50):
        put(cat, Row([first, *range(BLOCK - 1)]).blocks(), tier="disk")
        carried(cat)
        cat.carrying.retry()
    assert cat.carrying.num_deferred <= 2


def test_a_recycled_file_that_a_dead_writer_had_linked_is_counted_once_though_others_map_it():
    cat = catalog(ram=FILE)
    put(cat, [Row([1, *range(BLOCK - 1)]).blocks()[0]], owner="keeps it mapped")
    held = cat.reserve("writer", "ram", Row([2, *range(BLOCK - 1)]).blocks()[0], 4 * KIB, 0.0)
    cat.take_actions()
    cat.worker_gone("writer", 1.0)
    (action,) = cat.take_actions()
    cat.salvaged(action, ("ram", held.inode))
    cat.adopt(held.meta, Copy("ram", held.inode, held.generation, FILE, False, True), 4 * KIB, 0.0, 0.0, "ram")
    ledger = cat.holdings.stocks["ram"].ledger
    assert ledger.used_bytes == ledger.published_bytes == FILE


@pytest.mark.parametrize("num_tokens", [2 * BLOCK, 2 * BLOCK + 3, 3 * BLOCK])
def test_a_snapshot_keeps_the_blocks_before_it(num_tokens):
    cat = catalog()
    row = Row(range(num_tokens), cuttable=False)
    put(cat, [*row.blocks(), row.state()])
    for _ in range(20):  # hits: the snapshot is worth most
        cat.lookup("w", prompt(Row(range(num_tokens + 1)), Reuse.STATE), 0.0)
    cat.worker_gone("w", 0.0, hold=False)
    while cat.holdings.entries:
        is_there = (row.state().key, SegmentKind.SNAPSHOT) in cat.holdings.entries
        hit_len = cat.holdings.index.match(prompt(Row(range(num_tokens + 1)), Reuse.STATE)).hit_len
        assert hit_len == (num_tokens if is_there else 0)
        cat.holdings.trim("ram", cat.holdings.stocks["ram"].ledger.used_bytes - 1)


def test_a_row_larger_than_the_tier_keeps_its_beginning():
    cat = catalog(ram=2 * FILE)
    put(cat, ROW.blocks()[:2])
    assert cat.reserve("w", "ram", ROW.blocks()[2], 4 * KIB, 1e6) is Refusal.NO_BUDGET
    assert ask(cat, ROW).match.hit_len == 2 * BLOCK
    cat.worker_gone("w", 0.0, hold=False)
    assert isinstance(cat.reserve("w", "ram", Row([9, *range(BLOCK)]).blocks()[0], 4 * KIB, 1e6), Reservation)


def test_what_a_segment_being_written_needs_is_not_evicted():
    cat = catalog(ram=2 * FILE)
    other = Row([9, *range(BLOCK)]).blocks()[0]
    put(cat, ROW.blocks()[:1])
    held = cat.reserve("w", "ram", ROW.blocks()[1], 4 * KIB, 0.0)
    assert cat.reserve("w2", "ram", other, 4 * KIB, 1e6) is Refusal.NO_BUDGET
    assert cat.holdings.evict_entry((ROW.key(BLOCK), SegmentKind.BLOCK)) == 0
    cat.abort("w", held.token, 0, 1e6)
    put(cat, [other], "w2")
    assert cat.holdings.evict_entry((ROW.key(BLOCK), SegmentKind.BLOCK)) > 0


def test_what_hangs_below_a_missing_block_is_worthless_too():
    cat = catalog()
    put(cat, ROW.all())
    put(cat, [ROW.snapshot()])
    blocks = ROW.blocks()
    cat.holdings.drop_corrupt((blocks[0].key, SegmentKind.BLOCK))
    below = [(meta.key, meta.kind) for meta in (ROW.tail(), blocks[2], blocks[1])]
    assert cat.holdings.worthless() == below, "deepest first, and not the snapshot: it needs nothing before it"
    assert all(cat.holdings.evict_entry(identity) for identity in cat.holdings.worthless())


def test_nothing_is_kept_of_segments_that_come_and_go():
    cat = catalog()
    for first in range(3000):
        row = Row([first, *range(BLOCK - 1)])
        put(cat, row.blocks())
        cat.release(ask(cat, row).lease, "w")
        cat.holdings.evict_entry((row.blocks()[0].key, SegmentKind.BLOCK))
        for action in cat.take_actions():
            if isinstance(action, ForgetMapping):
                cat.forgotten(action.owner, (action.tier, action.inode))
    assert len(cat.holdings.touched) == 0 and len(cat.holdings.stocks["ram"].evictor) < 2500


def test_what_is_stored_and_not_offered_is_explained_too():
    cat = catalog()
    put(cat, ROW.all())
    ask(cat, ROW, owner="poisoned")
    cat.worker_gone("poisoned", 1.0)
    assert ask(cat, ROW, cautious=True).miss_reason is MissReason.WITHHELD
    never = Row([5, *range(BLOCK)])
    assert ask(cat, never, cautious=True).miss_reason is MissReason.NEVER_SEEN
    cat.recovering = True
    assert ask(cat, never).miss_reason is MissReason.RECOVERING


def test_a_segment_that_cannot_be_cut_is_offered_whole_or_said_to_be_there():
    cat = catalog()
    row = Row(range(BLOCK + 8), cuttable=False)
    put(cat, row.all())
    within = ask(cat, Row(range(BLOCK + 5)))
    assert (within.match.hit_len, within.miss_reason) == (BLOCK, MissReason.UNCUTTABLE)
    assert within.match.diverged_at is None
    beside = ask(cat, Row([*range(BLOCK + 5), 999]))
    assert (beside.match.hit_len, beside.match.diverged_at) == (BLOCK, BLOCK + 5)
    put(cat, [Row(range(BLOCK + 3), cuttable=False).tail()])
    assert ask(cat, Row(range(BLOCK + 5))).match.hit_len == BLOCK + 3
    assert ask(cat, Row(range(BLOCK + 9))).match.hit_len == BLOCK + 8
