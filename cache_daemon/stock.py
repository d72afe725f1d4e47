"""One tier's bytes and files: its ledger, its pool of recyclable files, its evictor. Pure.

Owner: the catalog. Fresh shared-memory pages cost more than the copy into them (1 to 3 GB/s on first touch, 20 on reuse), and a
model's blocks are all of one size: so an evicted file goes to a pool and is overwritten by the next save of its size.
"""

from dataclasses import dataclass, field

from cache_daemon.entries import TierSpec
from cache_daemon.eviction import Evictor
from cache_daemon.ledger import Ledger

POOL_SHARE = 8
"""At most one eighth of a tier waits for reuse while nobody asks for room."""

MAX_WASTE = 1.25
"""A recycled file may be this much larger than asked for."""


@dataclass(frozen=True, slots=True)
class FreeFile:
    """A file that may be overwritten."""

    path: str
    inode: int
    generation: int
    file_bytes: int


@dataclass(slots=True)
class Stock:
    """A tier at work. `num_segments`: with a copy in it."""

    spec: TierSpec
    ledger: Ledger
    evictor: Evictor
    pool: list[FreeFile] = field(default_factory=list)
    num_segments: int = 0

    def fits_pool(self, num_bytes: int) -> bool:
        """Whether the pool may grow by so much without being asked for."""
        return (self.ledger.recyclable_bytes + num_bytes) * POOL_SHARE <= self.ledger.limit_bytes

    def add_free(self, file: FreeFile) -> None:
        """Put a file into the pool."""
        self.pool.append(file)
        self.ledger.recyclable_bytes += file.file_bytes

    def take_free(self, num_bytes: int) -> FreeFile | None:
        """Take the best-fitting file out of the pool, if one is neither too small nor wasteful."""
        fitting = [file for file in self.pool if suits(file.file_bytes, num_bytes)]
        if not fitting:
            return None
        best = min(fitting, key=lambda file: file.file_bytes)
        self._remove_free(best)
        return best

    def pop_free(self) -> FreeFile | None:
        """Take the oldest file out of the pool, to unlink it."""
        if not self.pool:
            return None
        oldest = self.pool[0]
        self._remove_free(oldest)
        return oldest

    def _remove_free(self, file: FreeFile) -> None:
        self.pool.remove(file)
        self.ledger.recyclable_bytes -= file.file_bytes


def suits(file_bytes: int, wanted_bytes: int) -> bool:
    """Whether a file of that size may stand in for a new one."""
    return wanted_bytes <= file_bytes <= wanted_bytes * MAX_WASTE
