"""The bytes of one tier. Pure.

    used = published + reserved + recyclable + unlinked

Owner: the catalog. Everything is counted before space is given out, and until the kernel can really have it back: a file
that was unlinked while a worker has it mapped still occupies memory, so it stays counted until that worker has unmapped
it or died.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Ledger:
    """Byte counts of a tier.

    Attributes:
        budget_bytes: as configured. limit_bytes: what is in force, less where the filesystem is smaller than that.
    """

    budget_bytes: int
    limit_bytes: int
    published_bytes: int = 0
    reserved_bytes: int = 0
    recyclable_bytes: int = 0
    unlinked_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """Everything that occupies the tier."""
        return self.published_bytes + self.reserved_bytes + self.recyclable_bytes + self.unlinked_bytes

    @property
    def free_bytes(self) -> int:
        """What can be given out; negative when the limit has shrunk below what is used."""
        return self.limit_bytes - self.used_bytes

    def fits(self, num_bytes: int) -> bool:
        """Whether so many more bytes stay within the limit."""
        return num_bytes <= self.free_bytes

    def as_dict(self) -> dict[str, int]:
        """All counts, for `stats`."""
        return {
            "budget_bytes": self.budget_bytes,
            "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes,
            "published_bytes": self.published_bytes,
            "reserved_bytes": self.reserved_bytes,
            "recyclable_bytes": self.recyclable_bytes,
            "unlinked_bytes": self.unlinked_bytes,
        }
