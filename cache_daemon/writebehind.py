"""Carrying a published segment from shared memory into a disk tier. Runs in a background thread; bytes move in the kernel.

Order, and the crash each step survives: space first (a full disk is an error here, not a half file), then the bytes, then
fdatasync, then the name, then the directory: a name on disk always leads to a whole file. A temporary file left by a crash is
swept at the next start. One daemon at a time has the tier (its lock), so the name may simply be replaced.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache_daemon.actions import Carry
from erllama_host.transport.shm import create_file


@dataclass(frozen=True, slots=True)
class Arrived:
    """The copy is there, durably."""

    inode: int
    generation: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class NotArrived:
    """It is not. `no_space`: because the filesystem is full."""

    no_space: bool
    why: str


def carry(action: Carry) -> Arrived | NotArrived:
    """Write the copy. Any failure of the filesystem is a value: the segment stays where it is."""
    try:
        return _carry(action)
    except OSError as error:
        with suppress(OSError):  # on a disk that has become read-only even that fails
            Path(action.temporary).unlink(missing_ok=True)
        return NotArrived(error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), str(error))


def _carry(action: Carry) -> Arrived:
    source = os.open(action.source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = create_file(action.temporary, action.file_bytes)
        try:
            _copy(source, target, action.file_bytes)
            os.fdatasync(target)
            inode = os.fstat(target).st_ino
        finally:
            os.close(target)
        generation = int.from_bytes(os.pread(source, 8, 0), "little")
    finally:
        os.close(source)
    os.replace(action.temporary, action.final)  # noqa: PTH105
    _sync_directory(Path(action.final).parent)
    return Arrived(inode, generation, action.file_bytes)


def _copy(source: int, target: int, num_bytes: int) -> None:
    """sendfile, not copy_file_range: the kernel refuses that between filesystems."""
    offset = 0
    while offset < num_bytes:
        sent = os.sendfile(target, source, offset, num_bytes - offset)
        if sent == 0:
            raise OSError(errno.EIO, "the source file is shorter than its header says")
        offset += sent


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
