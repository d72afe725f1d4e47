"""The segment file's header: one file per segment, self-describing. Pure.

Offset table (all integers little-endian; docs/internals/segment-format.md explains each field):

    0    u64   generation        bumped before a file is overwritten; outside the header checksum
    8    8s    magic             b"ERLKVSEG"
    16   u16   format version    1
    18   u8    kind              1 block, 2 tail, 3 snapshot, 4 logits
    19   u8    save reason       see SaveReason
    20   u32   header bytes      up to the end of the tokens; the payload starts at a page boundary after it
    24   32s   key               key(end)
    56   32s   parent key        key(start)
    88   32s   namespace         root key of the model without adapters
    120  32s   root              key(0) of the adapter set in use
    152  u32   start             first token position covered, a block boundary
    156  u32   end               one past the last
    160  u32   covers from       the payload needs the segments of [0, covers from) before it; snapshots: 0 = whole
    164  u32   reply start       first position of the reply in a finish row; 0xFFFFFFFF: not a finish row
    168  u32   flags             bit 0: the payload may be restored and truncated at any token
    172  u32   block tokens      the block length in force
    176  u64   created           nanoseconds since the epoch
    184  u64   payload offset    a multiple of 4096
    192  u64   payload bytes
    200  u64   payload checksum  XXH3-64
    208  u64   header checksum   XXH3-64 of bytes [8, 208) and of the tokens
    216  u32[] tokens            the ids of [start, end)

XXH3 is computed by the caller (`checksum`), so that this module stays free of native code.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from erllama_host.kv.keys import KEY_BYTES
from erllama_host.kv.tokens import TOKEN_BYTES

MAGIC = b"ERLKVSEG"
FORMAT_VERSION = 1
PAGE_BYTES = 4096
NO_REPLY = 0xFFFFFFFF
GENERATION_BYTES = 8
FLAG_CUTTABLE = 1

_FIXED = struct.Struct("<8sHBBI32s32s32s32sIIIIIIQQQQ")
_U64 = struct.Struct("<Q")
_FIXED_START = GENERATION_BYTES
_CHECKSUM_OFFSET = _FIXED_START + _FIXED.size
TOKENS_OFFSET = _CHECKSUM_OFFSET + _U64.size
KEY_OFFSET = 24

Checksum = Callable[[bytes], int]


class SegmentKind(IntEnum):
    """What a segment is; with the key, a file's identity."""

    BLOCK = 1
    TAIL = 2
    SNAPSHOT = 3
    LOGITS = 4


_SUFFIXES = {kind: f".{kind.name.lower()}" for kind in SegmentKind}


class SaveReason(IntEnum):
    """Why a segment was saved."""

    COLD = 1
    CONTINUED = 2
    FINISH = 3
    EVICT = 4
    SHUTDOWN = 5
    PREFIX = 6


class HeaderProblem(IntEnum):
    """Why bytes are not a usable segment header."""

    JUNK = 1
    OLDER_VERSION = 2
    NEWER_VERSION = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentMeta:
    """What a segment holds, apart from its bytes.

    Attributes:
        key: key(end). Identity is (key, kind).
        parent: key(start).
        namespace: the model's root key without adapters: groups segments by model.
        root: key(0) of the adapter set they were made with.
        start, end: token range `[start, end)`; `start` is a block boundary. Snapshots and logits are indexed under
            the block boundary at or below their end, so `start` may equal `end`.
        tokens: packed ids of `[start, end)`.
        covers_from: the payload is usable after the segments of `[0, covers_from)`; equals `start` for blocks and
            tails, 0 for a snapshot of the whole state.
        block_tokens: length of blocks when it was made.
        cuttable: it may be restored and truncated at any token (plain attention). A longer segment then replaces it.
        reason: why it was saved; what was saved as PREFIX is pinned.
        reply_start: first position of the reply, in the tail or block that ends a turn.
    """

    key: bytes
    kind: SegmentKind
    parent: bytes
    namespace: bytes
    root: bytes
    start: int
    end: int
    tokens: bytes
    covers_from: int
    block_tokens: int
    cuttable: bool
    reason: SaveReason
    reply_start: int | None = None

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.end and 0 <= self.covers_from <= self.start
        assert len(self.tokens) == (self.end - self.start) * TOKEN_BYTES
        assert len(self.key) == len(self.parent) == len(self.namespace) == len(self.root) == KEY_BYTES

    @property
    def num_tokens(self) -> int:
        """Tokens in `[start, end)`."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """A whole header: what the segment holds, and where its payload lies."""

    meta: SegmentMeta
    created_ns: int
    payload_bytes: int
    payload_checksum: int

    @property
    def payload_offset(self) -> int:
        """Where the payload begins in the file; page-aligned."""
        return payload_offset(self.meta.num_tokens)

    @property
    def file_bytes(self) -> int:
        """The least size of a file with this header and its payload."""
        return self.payload_offset + self.payload_bytes


def payload_offset(num_tokens: int) -> int:
    """Where the payload of a segment of so many tokens begins."""
    return round_to_page(TOKENS_OFFSET + num_tokens * TOKEN_BYTES)


def file_bytes(num_tokens: int, payload_bytes: int) -> int:
    """Size of the file that holds such a segment, in whole pages."""
    return round_to_page(payload_offset(num_tokens) + payload_bytes)


def round_to_page(num_bytes: int) -> int:
    """`num_bytes` rounded up to whole pages."""
    return -(-num_bytes // PAGE_BYTES) * PAGE_BYTES


def file_name(key: bytes, kind: SegmentKind) -> str:
    """Path of a segment relative to its tier: sharded by the first key byte."""
    text = key.hex()
    return f"{text[:2]}/{text}{_SUFFIXES[kind]}"


def parse_file_name(name: str) -> tuple[bytes, SegmentKind] | None:
    """Identity from the last part of a path made by `file_name`; None for any other name."""
    stem, _, suffix = name.partition(".")
    if len(stem) != 2 * KEY_BYTES or suffix.upper() not in SegmentKind.__members__ or suffix != suffix.lower():
        return None
    try:
        return bytes.fromhex(stem), SegmentKind[suffix.upper()]
    except ValueError:
        return None


def encode_header(header: SegmentHeader, checksum: Checksum) -> bytes:
    """Bytes [8, header end): everything but the generation, which its owner writes separately."""
    meta = header.meta
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT_VERSION,
        meta.kind,
        meta.reason,
        TOKENS_OFFSET + len(meta.tokens),
        meta.key,
        meta.parent,
        meta.namespace,
        meta.root,
        meta.start,
        meta.end,
        meta.covers_from,
        NO_REPLY if meta.reply_start is None else meta.reply_start,
        FLAG_CUTTABLE if meta.cuttable else 0,
        meta.block_tokens,
        header.created_ns,
        header.payload_offset,
        header.payload_bytes,
        header.payload_checksum,
    )
    return fixed + _U64.pack(checksum(fixed + meta.tokens)) + meta.tokens


def decode_header(data: bytes, checksum: Checksum) -> SegmentHeader | HeaderProblem:
    """Read a header from the beginning of a file.

    Args:
        data: the file's first bytes, generation included; at least up to the end of the tokens.
        checksum: XXH3-64.
    Returns:
        The header, or why it is not one. Never raises, whatever the bytes are.
    """
    if len(data) < TOKENS_OFFSET or data[_FIXED_START : _FIXED_START + len(MAGIC)] != MAGIC:
        return HeaderProblem.JUNK
    version = int.from_bytes(data[16:18], "little")
    if version != FORMAT_VERSION:
        return HeaderProblem.OLDER_VERSION if version < FORMAT_VERSION else HeaderProblem.NEWER_VERSION
    return _decode_current(data, checksum)


def _decode_current(data: bytes, checksum: Checksum) -> SegmentHeader | HeaderProblem:
    fixed = data[_FIXED_START:_CHECKSUM_OFFSET]
    (_, _, kind, reason, header_bytes, key, parent, namespace, root, start, end, covers_from, reply, flags, block_tokens,
     created, offset, payload_bytes, payload_checksum) = _FIXED.unpack(fixed)  # fmt: skip
    tokens = data[TOKENS_OFFSET:header_bytes]
    if checksum(fixed + tokens) != _U64.unpack_from(data, _CHECKSUM_OFFSET)[0]:
        return HeaderProblem.JUNK
    if len(tokens) != (end - start) * TOKEN_BYTES or offset != payload_offset(end - start) or covers_from > start:
        return HeaderProblem.JUNK
    try:
        kind, reason = SegmentKind(kind), SaveReason(reason)
    except ValueError:
        return HeaderProblem.JUNK
    meta = SegmentMeta(
        key=key, kind=kind, parent=parent, namespace=namespace, root=root, start=start, end=end, tokens=tokens,
        covers_from=covers_from, block_tokens=block_tokens, cuttable=bool(flags & FLAG_CUTTABLE), reason=reason,
        reply_start=None if reply == NO_REPLY else reply,
    )  # fmt: skip
    return SegmentHeader(meta, created, payload_bytes, payload_checksum)


def header_bytes_needed(data: bytes) -> int:
    """From a file's first `TOKENS_OFFSET` bytes: the length of its header with the generation; 0 if it is none."""
    if len(data) < TOKENS_OFFSET or data[_FIXED_START : _FIXED_START + len(MAGIC)] != MAGIC:
        return 0
    return int.from_bytes(data[20:24], "little")
