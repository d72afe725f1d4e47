"""The directory of one tier: made private, locked by one daemon, sharded by the first key byte.

    <path>/lock        held (flock) by the daemon that uses the tier
    <path>/00 … ff     published segments, named by key and kind
    <path>/tmp         being written
    <path>/free        evicted files that may be overwritten

Files in `tmp` and `free` mean nothing to a new daemon: they are removed at start.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cache_daemon.entries import TierSpec
from erllama_host.config import private_directory
from erllama_host.errors import ConfigError

SHARDS = tuple(f"{byte:02x}" for byte in range(256))
_KEEP_FREE_SHARE = 0.05
"""Of a filesystem; left to others, and to the difference between file sizes and blocks."""


class TierBusy(Exception):
    """Another daemon uses the directory."""


class TierDirectory:
    """A tier's directory, locked for the life of this object."""

    def __init__(self, spec: TierSpec) -> None:
        """Create what is missing, lock, sweep.

        Raises:
            TierBusy: another daemon has the lock.
            ConfigError: the directory cannot be made or written, or is open to others.
        """
        self.spec = spec
        name = f"cache tier {spec.name!r}"
        self.path = private_directory(Path(spec.path), name)
        try:
            self._lock_fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self.num_swept = self._take()
            except BaseException:
                os.close(self._lock_fd)
                raise
        except BlockingIOError as error:
            raise TierBusy(str(self.path)) from error
        except OSError as error:  # a disk that has become read-only, for one
            raise ConfigError(f"{name}: cannot use directory {self.path}: {error.strerror}", key=name) from error

    def _take(self) -> int:
        """Lock, make what is missing, sweep; returns how many files that removed."""
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in (*SHARDS, "tmp", "free"):
            (self.path / name).mkdir(mode=0o700, exist_ok=True)
        return self._sweep()

    def room_bytes(self, used_bytes: int) -> int:
        """How large the tier could be on its filesystem, given what it uses already."""
        status = os.statvfs(self.path)
        free = status.f_bavail * status.f_frsize - int(status.f_blocks * status.f_frsize * _KEEP_FREE_SHARE)
        return used_bytes + max(0, free)

    def files(self) -> Iterator[os.DirEntry[str]]:
        """All files in the shards, published by name; foreign ones included. A shard that the disk does not give has none."""
        for shard in SHARDS:
            try:
                with os.scandir(self.path / shard) as entries:
                    found = list(entries)
            except OSError:
                continue
            yield from found

    def close(self) -> None:
        """Let another daemon have it."""
        os.close(self._lock_fd)

    def _sweep(self) -> int:
        stale = [entry for name in ("tmp", "free") for entry in (self.path / name).iterdir()]
        for path in stale:
            path.unlink()
        return len(stale)
