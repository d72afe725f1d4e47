"""The segments of a row: ranges, parents, and what each is to the backend."""

import pytest

from erllama_host.kv.keys import KeySpace
from erllama_host.kv.segment import SaveReason, SegmentKind
from erllama_host.kv.tokens import num_tokens
from erllama_host.protocol import pack_tokens
from workers.backend.values import PieceKind
from workers.kv_keys import RowKeys, piece_range

BLOCK = 16
SPACE = KeySpace(b"m" * 32, 3, b"c" * 32)
TOKENS = list(range(3 * BLOCK))


def keys(length):
    return RowKeys(SPACE, SPACE.root, BLOCK, lambda start, end, kind: True, pack_tokens(TOKENS[:length]))


def key(end):
    return SPACE.key(pack_tokens(TOKENS[:end]))


@pytest.mark.parametrize(
    ("end", "has_cells", "start", "covers_from"),
    [
        (2 * BLOCK, True, BLOCK, BLOCK),  # at a block's end: with that block's cells, after the one before
        (2 * BLOCK + 3, True, 2 * BLOCK, 2 * BLOCK),
        (BLOCK, True, 0, 0),
        (5, True, 0, 0),
        (2 * BLOCK, False, 2 * BLOCK, 0),  # everything from 0 on: needs nothing, and its tokens are in its key
        (2 * BLOCK + 3, False, 2 * BLOCK, 0),
    ],
)
def test_a_snapshot_hangs_on_the_last_block_it_needs(end, has_cells, start, covers_from):
    piece = keys(end).snapshot(end, SaveReason.COLD, has_cells=has_cells)
    meta = piece.meta
    assert (meta.kind, meta.key, meta.parent) == (SegmentKind.SNAPSHOT, key(end), key(start))
    assert (meta.start, meta.end, meta.covers_from, num_tokens(meta.tokens)) == (start, end, covers_from, end - start)
    assert (piece.start, piece.end, piece.kind) == piece_range(meta) == (covers_from, end, PieceKind.SNAPSHOT)


def test_blocks_and_tails_join():
    row = keys(2 * BLOCK + 5)
    block, tail = row.block(2 * BLOCK, SaveReason.COLD), row.tail(2 * BLOCK + 5, SaveReason.FINISH, BLOCK)
    assert (block.start, block.end, tail.start, tail.end) == (BLOCK, 2 * BLOCK, 2 * BLOCK, 2 * BLOCK + 5)
    assert tail.meta.parent == block.meta.key == key(2 * BLOCK) and block.meta.parent == key(BLOCK)
    assert tail.meta.reply_start is None, "the reply begins in an earlier segment"
    assert row.tail(2 * BLOCK + 5, SaveReason.FINISH, 2 * BLOCK + 1).meta.reply_start == 2 * BLOCK + 1
