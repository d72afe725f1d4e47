"""Segments of a row: their keys, ranges and headers. Pure.

A *piece* is what the backend packs, `[piece.start, piece.end)`; the segment's header covers the same tokens, but for a snapshot of
everything from 0 on: that is indexed under the block boundary at or below its end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from erllama_host.kv.keys import KeyChain, KeySpace
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta
from erllama_host.kv.tokens import slice_tokens
from workers.backend.values import Logits, PieceKind

Cuttable = Callable[[int, int, PieceKind], bool]


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment to store. `logits`: the payload, for LOGITS; everything else is packed by the backend."""

    meta: SegmentMeta
    kind: PieceKind
    start: int
    end: int
    logits: Logits | None = None


class RowKeys:
    """Makes the segments of one row of tokens."""

    def __init__(self, space: KeySpace, namespace: bytes, block_tokens: int, cuttable: Cuttable, packed: bytes) -> None:
        """`packed`: the row, at least as long as whatever is asked for."""
        self.packed = packed
        self._namespace = namespace
        self._cuttable = cuttable
        self.chain: KeyChain = space.chain(block_tokens)
        self.chain.extend(packed)
        self._block_tokens = block_tokens

    def extend(self, packed: bytes) -> None:
        """The row has grown by these tokens."""
        self.packed += packed
        self.chain.extend(packed)

    def key(self, end: int) -> bytes:
        """key(end)."""
        if end == self.chain.num_tokens:
            return self.chain.key()
        if end % self._block_tokens == 0:
            return self.chain.boundary_key(end)
        return self.chain.space.key(slice_tokens(self.packed, 0, end))

    def floor(self, position: int) -> int:
        """The last block boundary at or below `position`."""
        return position - position % self._block_tokens

    def block(self, end: int, reason: SaveReason, reply_start: int | None = None) -> Piece:
        """The block that ends at the boundary `end`."""
        return self._cells(SegmentKind.BLOCK, end - self._block_tokens, end, reason, reply_start)

    def tail(self, end: int, reason: SaveReason, reply_start: int | None = None) -> Piece:
        """What lies between the last boundary and `end`."""
        return self._cells(SegmentKind.TAIL, self.floor(end), end, reason, reply_start)

    def snapshot(self, end: int, reason: SaveReason, *, has_cells: bool, reply_start: int | None = None) -> Piece:
        """The state at `end`: where there is attention KV, after the blocks before it, else all of it."""
        # One at a block's end holds that block's cells: it must hang on the block before, which it needs, not on the one it holds.
        start = self.floor(end - 1) if has_cells else self.floor(end)
        covers_from = start if has_cells else 0
        meta = self._meta(SegmentKind.SNAPSHOT, start, end, covers_from, False, reason, reply_start)
        return Piece(meta, PieceKind.SNAPSHOT, covers_from, end)

    def logits(self, end: int, row: Logits) -> Piece:
        """The logits after `end` tokens."""
        start = self.floor(end)
        meta = self._meta(SegmentKind.LOGITS, start, end, start, False, SaveReason.COLD, None)
        return Piece(meta, PieceKind.CELLS, start, end, row)

    def _cells(self, kind: SegmentKind, start: int, end: int, reason: SaveReason, reply_start: int | None) -> Piece:
        cuttable = self._cuttable(start, end, PieceKind.CELLS)
        return Piece(self._meta(kind, start, end, start, cuttable, reason, reply_start), PieceKind.CELLS, start, end)

    def _meta(
        self, kind: SegmentKind, start: int, end: int, covers_from: int, cuttable: bool, reason: SaveReason,
        reply_start: int | None,
    ) -> SegmentMeta:  # fmt: skip
        inside = reply_start is not None and start <= reply_start <= end
        return SegmentMeta(
            key=self.key(end),
            kind=kind,
            parent=self.chain.boundary_key(start),
            namespace=self._namespace,
            root=self.chain.root,
            start=start,
            end=end,
            tokens=slice_tokens(self.packed, start, end),
            covers_from=covers_from,
            block_tokens=self._block_tokens,
            cuttable=cuttable,
            reason=reason,
            reply_start=reply_start if inside else None,
        )


def piece_range(meta: SegmentMeta) -> tuple[int, int, PieceKind]:
    """What a stored segment's payload is to the backend."""
    if meta.kind is SegmentKind.SNAPSHOT:
        return meta.covers_from, meta.end, PieceKind.SNAPSHOT
    return meta.start, meta.end, PieceKind.CELLS
