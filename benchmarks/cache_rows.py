"""Segment files as a host leaves them behind, made without a model: for measuring the cache daemon with many of them."""

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from erllama_host.kv.keys import KeySpace
from erllama_host.kv.segment import (
    SaveReason,
    SegmentHeader,
    SegmentKind,
    SegmentMeta,
    encode_header,
    file_name,
    payload_offset,
)
from erllama_host.kv.tokens import slice_tokens
from erllama_host.protocol import pack_tokens
from erllama_host.transport.shm import checksum
from workers.kv_types import LookupQuery

BLOCK_TOKENS = 256
ROW_TOKENS = 2048
VOCABULARY = 49_152
"""Of SmolLM2."""
SPACE = KeySpace(b"b" * 32, 255, b"c" * 32)


class SyntheticRow:
    """A row of 2 048 made-up tokens, eight blocks; it begins with the packed tokens `shared`."""

    def __init__(self, number: int, shared: bytes = b"") -> None:
        own = pack_tokens(np.random.default_rng(number).integers(1, VOCABULARY, ROW_TOKENS).tolist())
        self.packed = shared + own[len(shared) :]
        self.chain = SPACE.chain(BLOCK_TOKENS)
        self.chain.extend(self.packed)

    def blocks(self) -> Iterator[SegmentMeta]:
        """Its segments, parents first."""
        for end in range(BLOCK_TOKENS, ROW_TOKENS + 1, BLOCK_TOKENS):
            start = end - BLOCK_TOKENS
            yield SegmentMeta(
                key=self.chain.boundary_key(end),
                kind=SegmentKind.BLOCK,
                parent=self.chain.boundary_key(start),
                namespace=SPACE.root,
                root=SPACE.root,
                start=start,
                end=end,
                tokens=slice_tokens(self.packed, start, end),
                covers_from=start,
                block_tokens=BLOCK_TOKENS,
                cuttable=True,
                reason=SaveReason.COLD,
            )

    def query(self) -> LookupQuery:
        """Asks for all of it."""
        return LookupQuery(
            root=SPACE.root,
            block_keys=tuple(self.chain.block_keys),
            tokens=self.packed,
            prompt_key=self.chain.key(),
        )


def write_segments(tier: Path, num_segments: int, payload_bytes: int = 4096) -> None:
    """Fill a tier's directory with the blocks of as many rows as it takes."""
    for shard in range(256):
        (tier / f"{shard:02x}").mkdir(parents=True, exist_ok=True)
    tier.chmod(0o700)
    payload = bytes(payload_bytes)
    payload_sum = checksum(payload)
    written = 0
    for number in range(-(-num_segments * BLOCK_TOKENS // ROW_TOKENS)):
        for meta in SyntheticRow(number).blocks():
            if written == num_segments:
                return
            header = SegmentHeader(meta, time.time_ns(), payload_bytes, payload_sum)
            head = struct.pack("<Q", 1) + encode_header(header, checksum)
            whole = head.ljust(payload_offset(meta.num_tokens), b"\0") + payload
            (tier / file_name(meta.key, meta.kind)).write_bytes(whole)
            written += 1
