"""The file stages of a save and a restore, one function each, so that a crash can be put between any two. I/O thread only.

A save: `open_reserved` → (the engine packs) → `seal` → `link_final`. Between the last two the daemon is asked whether the
reservation is still ours. Until `link_final` nothing is visible; after it the segment is whole, whoever dies.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erllama_host.kv.segment import (
    GENERATION_BYTES,
    TOKENS_OFFSET,
    HeaderProblem,
    SegmentHeader,
    SegmentMeta,
    decode_header,
    encode_header,
    header_bytes_needed,
    payload_offset,
)
from erllama_host.transport.shm import Mapping, checksum, create_file, map_path, new_digest

CHUNK_BYTES = 8 << 20
"""A checksum's slice: about 1 ms, so that the socket is not kept waiting by a large payload."""


def open_reserved(path: str, num_bytes: int, generation: int, mapped: Mapping | None) -> Mapping:
    """Make the region of a reservation writable in this process.

    Args:
        mapped: the recycled file that lies at `path`, if this process has it mapped already.
    Raises:
        OSError: ENOSPC when the filesystem is full; ENOENT when the reservation was lost meanwhile.
    """
    if mapped is None and generation > 1:
        mapped = map_path(path)
    if mapped is not None:
        # A reader that still looks at the old segment must see this before the first new byte.
        mapped.generation = generation
        return mapped
    fd = create_file(path, num_bytes)
    try:
        mapping = Mapping(fd)
    finally:
        os.close(fd)
    mapping.prefault()
    mapping.generation = generation
    return mapping


def payload_checksum(mapping: Mapping, start: int, num_bytes: int) -> Iterator[int | None]:
    """Checksum of a mapped payload, in slices: yields None between them, and the value last."""
    digest = new_digest()
    for offset in range(start, start + num_bytes, CHUNK_BYTES):
        with mapping.view(offset, min(offset + CHUNK_BYTES, start + num_bytes)) as chunk:
            digest.update(chunk)
        yield None
    yield digest.intdigest()


def seal(mapping: Mapping, meta: SegmentMeta, payload_bytes: int, payload_sum: int) -> SegmentHeader:
    """Write the header of a packed segment."""
    header = SegmentHeader(meta, time.time_ns(), payload_bytes, payload_sum)
    mapping.write(GENERATION_BYTES, encode_header(header, checksum))
    return header


@dataclass(frozen=True, slots=True)
class Linked:
    """The file has its final name. `adopted`: another good one had it already; ours is gone."""

    inode: int
    generation: int
    payload_bytes: int
    file_bytes: int
    adopted: bool


def link_final(temporary: str, final: str, mapping: Mapping, header: SegmentHeader) -> Linked | None:
    """Give a sealed file its final name, unless a good file has it.

    None: it cannot be had. Mostly the reservation was lost, and the file is gone; the filesystem may refuse the name, too.

    link(2) is atomic and never replaces, so of two writers one wins, and a reader sees a whole file or none.
    """
    while True:
        try:
            os.link(temporary, final)
        except FileExistsError:
            existing = _adoptable(final, header.meta)
            if existing is not None:
                Path(temporary).unlink(missing_ok=True)
                return existing
            if not _removed(final):
                return None
            continue
        except OSError:
            return None
        Path(temporary).unlink(missing_ok=True)
        return Linked(mapping.inode, mapping.generation, header.payload_bytes, mapping.num_bytes, adopted=False)


def _removed(path: str) -> bool:
    """Remove junk under our name: nobody can have a lease on it. False where it is no file."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _adoptable(path: str, meta: SegmentMeta) -> Linked | None:
    try:
        mapping = map_path(path)
    except (OSError, ValueError):
        return None
    try:
        header = read_header(mapping)
        if header is None or (header.meta.key, header.meta.kind) != (meta.key, meta.kind):
            return None
        *_, found = payload_checksum(mapping, header.payload_offset, header.payload_bytes)
        if found != header.payload_checksum:
            return None
        return Linked(mapping.inode, mapping.generation, header.payload_bytes, mapping.num_bytes, adopted=True)
    finally:
        mapping.close()


def read_header(mapping: Mapping) -> SegmentHeader | None:
    """The header of a mapped file; None when it is not a good one, or the file is too short for its payload.

    Decoding costs 15 µs, eight times a lookup: what was read is remembered with the mapping, for its generation.
    """
    generation = mapping.generation
    if mapping.note is not None and mapping.note[0] == generation and isinstance(mapping.note[1], SegmentHeader):
        return mapping.note[1]
    with mapping.view(0, min(TOKENS_OFFSET, mapping.num_bytes)) as start:
        needed = header_bytes_needed(bytes(start))
    if not TOKENS_OFFSET <= needed <= mapping.num_bytes:
        return None
    with mapping.view(0, needed) as data:
        header = decode_header(bytes(data), checksum)
    if isinstance(header, HeaderProblem) or header.file_bytes > mapping.num_bytes:
        return None
    mapping.note = (generation, header)
    return header


def payload_address(mapping: Mapping, meta: SegmentMeta) -> tuple[int, int]:
    """Where the payload of a segment goes: (address, bytes of room)."""
    offset = payload_offset(meta.num_tokens)
    return mapping.address + offset, mapping.num_bytes - offset
