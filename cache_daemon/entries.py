"""What the daemon knows of one segment, and of one copy of it in a tier. Plain data, owned by the catalog. Pure."""

from dataclasses import dataclass, field

from erllama_host.kv.segment import SegmentKind, SegmentMeta

Identity = tuple[bytes, SegmentKind]
"""(key, kind): what a segment is called."""

FileRef = tuple[str, int]
"""(tier, inode): what a file is called while anything maps it."""

SHARED_MEMORY_KINDS = ("ram", "ram_file")
_SPEED = {"ram": 0, "ram_file": 1, "disk": 2}


@dataclass(frozen=True, slots=True)
class TierSpec:
    """A tier: a directory with a budget. `kind`: `ram`, `ram_file` or `disk`."""

    name: str
    kind: str
    path: str
    budget_bytes: int

    @property
    def is_shared_memory(self) -> bool:
        """Whether workers write into it directly."""
        return self.kind in SHARED_MEMORY_KINDS

    @property
    def speed(self) -> int:
        """Lower is faster to read."""
        return _SPEED[self.kind]


@dataclass(slots=True)
class Copy:
    """A segment's file in one tier.

    Attributes:
        generation: what the reader must find in the first 8 bytes.
        recyclable: the file may be overwritten once evicted. False for ever when a lease on it ended by its TTL, or
            when it was published before this daemon started: somebody may still read it.
        verified: its payload checksum is known to hold.
    """

    tier: str
    inode: int
    generation: int
    file_bytes: int
    recyclable: bool
    verified: bool


@dataclass(slots=True)
class Entry:
    """A published segment.

    Attributes:
        target_tier: the tier it must reach.
        heat: see eviction.py; a logarithm of decayed hits, comparable between entries at any time.
        carrying: a copy to its target tier is being written; the source must stay.
        deaths: how many workers died while they had it leased.
    """

    meta: SegmentMeta
    payload_bytes: int
    created_s: float
    target_tier: str
    heat: float
    last_used_s: float
    copies: dict[str, Copy] = field(default_factory=dict)
    hits: int = 0
    pinned: bool = False
    superseded: bool = False
    carrying: bool = False
    deaths: int = 0

    @property
    def identity(self) -> Identity:
        """(key, kind)."""
        return self.meta.key, self.meta.kind
