"""Rows of tokens as segments, for tests of the cache: no model, payloads are a byte repeated."""

import ctypes
from collections.abc import Sequence

from erllama_host.kv.keys import KeySpace
from erllama_host.kv.reuse import Reuse
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta
from erllama_host.kv.tokens import slice_tokens
from erllama_host.protocol import pack_tokens
from workers.kv_store import KvStore
from workers.kv_types import LookupQuery, LookupResult, SegmentSpec

BLOCK = 16
SPACE = KeySpace(b"m" * 32, 3, b"c" * 32)
OTHER_SPACE = KeySpace(b"x" * 32, 3, b"c" * 32)


class Row:
    """The segments of one row in a key space."""

    def __init__(self, tokens: Sequence[int], space: KeySpace = SPACE, block: int = BLOCK, *, cuttable: bool = True):
        self.packed = pack_tokens(tokens)
        self.num_tokens = len(tokens)
        self.space = space
        self.block_tokens = block
        self.cuttable = cuttable
        self.chain = space.chain(block)
        self.chain.extend(self.packed)

    def key(self, end: int) -> bytes:
        return self.space.key(slice_tokens(self.packed, 0, end))

    def _meta(self, kind, start, end, reason, covers_from=None) -> SegmentMeta:
        return SegmentMeta(
            key=self.key(end),
            kind=kind,
            parent=self.key(start),
            namespace=self.space.root,
            root=self.space.root,
            start=start,
            end=end,
            tokens=slice_tokens(self.packed, start, end),
            covers_from=start if covers_from is None else covers_from,
            block_tokens=self.block_tokens,
            cuttable=self.cuttable,
            reason=reason,
        )

    def blocks(self, reason: SaveReason = SaveReason.COLD) -> list[SegmentMeta]:
        ends = range(self.block_tokens, self.num_tokens + 1, self.block_tokens)
        return [self._meta(SegmentKind.BLOCK, end - self.block_tokens, end, reason) for end in ends]

    def tail(self, reason: SaveReason = SaveReason.FINISH) -> SegmentMeta:
        return self._meta(SegmentKind.TAIL, self.chain.boundary(), self.num_tokens, reason)

    def state(self) -> SegmentMeta:
        """A snapshot as workers make it for a model with recurrent state and attention: with the cells after the blocks before."""
        start = (self.num_tokens - 1) // self.block_tokens * self.block_tokens
        return self._meta(SegmentKind.SNAPSHOT, start, self.num_tokens, SaveReason.FINISH)

    def snapshot(self, covers_from: int = 0) -> SegmentMeta:
        """One that hangs on the boundary at or below its end: everything from 0 on. (Others are of earlier files.)"""
        return self._meta(SegmentKind.SNAPSHOT, self.chain.boundary(), self.num_tokens, SaveReason.FINISH, covers_from)

    def logits(self) -> SegmentMeta:
        return self._meta(SegmentKind.LOGITS, self.chain.boundary(), self.num_tokens, SaveReason.COLD)

    def all(self) -> list[SegmentMeta]:
        """Blocks, then the tail if there is one."""
        return self.blocks() + ([self.tail()] if self.num_tokens % self.block_tokens else [])

    def query(self, reuse: Reuse = Reuse.CUT, **fields) -> LookupQuery:
        return LookupQuery(
            root=self.space.root,
            block_keys=tuple(self.chain.block_keys),
            tokens=self.packed,
            prompt_key=self.chain.key(),
            reuse=reuse,
            **fields,
        )


def payload_of(meta: SegmentMeta, num_bytes: int) -> bytes:
    """What `save` writes for a segment."""
    return bytes([meta.key[0] ^ meta.kind]) * num_bytes


def save(
    store: KvStore, metas: Sequence[SegmentMeta], num_bytes: int = 10_000, timeout_s: float = 10.0
) -> list[object]:
    """Reserve, fill, publish; returns the outcomes of the reservation."""
    outcomes = store.reserve([SegmentSpec(meta, num_bytes) for meta in metas], timeout_s).wait()
    for outcome in outcomes:
        if hasattr(outcome, "address"):
            ctypes.memset(outcome.address, payload_of(outcome.meta, 1)[0], num_bytes)
            store.publish(outcome, num_bytes)
    return outcomes


def look_up(store: KvStore, row: Row, timeout_s: float = 10.0, **fields) -> LookupResult:
    """A lookup that is waited for."""
    return store.lookup(row.query(**fields), timeout_s).wait()


def hit_len(store: KvStore, row: Row, **fields) -> int:
    """How much of a row is found; nothing stays leased."""
    result = look_up(store, row, **fields)
    store.release(result)
    return result.hit_len


def read(result: LookupResult) -> list[bytes]:
    """Payload bytes of every segment of a lookup; asserts that each is whole and its own."""
    payloads = []
    for segment in [*result.segments, *([result.logits] if result.logits else [])]:
        assert segment.intact()
        data = ctypes.string_at(segment.address, segment.num_bytes)
        assert segment.intact()
        assert data == payload_of(segment.meta, segment.num_bytes)
        payloads.append(data)
    return payloads
