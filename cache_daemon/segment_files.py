"""Reading published segment files from a directory, and deciding what each is worth. Reads only."""

import errno
import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from erllama_host.kv.segment import (
    PAGE_BYTES,
    TOKENS_OFFSET,
    HeaderProblem,
    SegmentHeader,
    decode_header,
    header_bytes_needed,
    parse_file_name,
)
from erllama_host.transport.shm import checksum, new_digest

_CHUNK_BYTES = 8 << 20


class Worth(Enum):
    """What is to be done with a file that is not a good segment."""

    FOREIGN = "foreign"
    """Not named as ours, or no file at all (a directory, a pipe, a link): left alone."""
    UNREADABLE = "unreadable"
    """The disk does not give it: left alone."""
    NEWER = "newer_version"
    """Written by a later release: left alone, so that going back and forth loses nothing."""
    OLDER = "older_version"
    """Unreadable for good: removed."""
    JUNK = "junk"
    """Named as ours, but damaged, cut or another segment: removed."""


REMOVED = frozenset({Worth.OLDER, Worth.JUNK})


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A good segment file. Its payload checksum has not been compared."""

    header: SegmentHeader
    generation: int
    inode: int
    file_bytes: int
    modified_s: float


def read_segment_file(path: str, name: str) -> FoundFile | Worth:
    """Judge a file by name, size and header. A file that is gone meanwhile is FOREIGN: nothing is to be done."""
    identity = parse_file_name(name)
    if identity is None:
        return Worth.FOREIGN
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # or a pipe waits for its writer
    except OSError as error:
        return Worth.UNREADABLE if error.errno == errno.EIO else Worth.FOREIGN
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return Worth.FOREIGN
        data = os.pread(fd, PAGE_BYTES, 0)
        needed = header_bytes_needed(data)
        if len(data) < needed <= status.st_size:
            data = os.pread(fd, needed, 0)
    except OSError:
        return Worth.UNREADABLE
    finally:
        os.close(fd)
    header = decode_header(data, checksum) if needed <= len(data) else HeaderProblem.JUNK
    if isinstance(header, HeaderProblem):
        return _WORTH[header]
    if (header.meta.key, header.meta.kind) != identity or status.st_size < header.file_bytes:
        return Worth.JUNK
    generation = int.from_bytes(data[:8], "little")
    return FoundFile(header, generation, status.st_ino, status.st_size, status.st_mtime)


_WORTH = {
    HeaderProblem.JUNK: Worth.JUNK,
    HeaderProblem.OLDER_VERSION: Worth.OLDER,
    HeaderProblem.NEWER_VERSION: Worth.NEWER,
}


def payload_is_good(path: str, header: SegmentHeader) -> bool:
    """Compare the payload checksum of a file, in chunks. False too when it cannot be read."""
    digest = new_digest()
    remaining = header.payload_bytes
    try:
        with Path(path).open("rb", buffering=0) as file:
            file.seek(header.payload_offset)
            while remaining and (chunk := file.read(min(remaining, _CHUNK_BYTES))):
                digest.update(chunk)
                remaining -= len(chunk)
    except OSError:
        return False
    return remaining == 0 and digest.intdigest() == header.payload_checksum


def inode_of_good_file(path: str) -> int | None:
    """The inode of a segment file that is good to the last byte; None of any other."""
    found = read_segment_file(path, path.rpartition("/")[2])
    return found.inode if isinstance(found, FoundFile) and payload_is_good(path, found.header) else None


assert TOKENS_OFFSET <= PAGE_BYTES
