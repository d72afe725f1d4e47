"""Messages on `cache.sock`: worker ⇄ cache daemon, and the calls the controller hands on to the daemon. Pure.

Frames are those of every socket, `[envelope][body]`; `ref` numbers the calls of one peer, `model` is the worker's model.
KV bytes never travel here: messages carry keys, paths, inodes and sizes. `kind`, `reuse` and `reason` are the values of
`kv.segment.SegmentKind`, `kv.reuse.Reuse` and `kv.reuse.MissReason` / `Refusal`.

A worker says `k.hello` first, and again whenever the daemon answers `k.who`: then the daemon has been replaced, and knows
neither its leases nor its reservations.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from erllama_host.protocol.calls import CacheAnswer, CacheCall, Nothing, Ok

Pid = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**48)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=600_000)]


class _Body(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Base of all bodies here; both ends belong to one release, so unknown fields are ignored."""


class FileId(msgspec.Struct, array_like=True, frozen=True):
    """A file that may be mapped: inodes are not reused while a mapping exists."""

    tier: str
    inode: int


class WorkerRegister(_Body, frozen=True):
    """`k.hello`: a worker registers, or registers again.

    Attributes:
        namespace: root key of its model without adapters, 32 bytes.
        tier: name of the tier its rows must reach.
        block_tokens: into blocks of how many tokens it cuts rows; the daemon must have the same.
        mapped: files it still reads or writes, so that their bytes are counted although a replaced daemon forgot why.
    """

    model_id: str
    pid: Pid
    incarnation: str
    namespace: bytes
    tier: str
    block_tokens: int
    mapped: list[FileId] = []


class Registered(_Body, frozen=True):
    """Reply to `k.hello`. `daemon`: its incarnation. `refused`: why it does not take this worker, which then runs uncached."""

    daemon: str
    refused: str = ""


class Lookup(_Body, frozen=True):
    """`k.lookup`: the longest stored prefix of `tokens`, leased. See `LookupQuery` in the worker for the fields.

    Attributes:
        block_keys: the 32-byte keys at every block boundary, concatenated.
    """

    root: bytes
    block_keys: bytes
    tokens: bytes
    prompt_key: bytes
    reuse: str = "cut"
    parent_key: bytes | None = None
    wait_ms: Milliseconds = 0
    cautious: bool = False


class FoundSegment(_Body, frozen=True):
    """One leased segment and the file to read it from. `verify`: its payload checksum has not been checked yet."""

    key: bytes
    kind: int
    use_end: int
    tier: str
    path: str
    inode: int
    generation: int
    verify: bool = False


class Found(_Body, frozen=True):
    """Reply to `k.lookup`. `lease` is 0 when nothing is leased; `segments` are in the order of restoring."""

    lease: int = 0
    hit_len: int = 0
    segments: list[FoundSegment] = []
    logits: FoundSegment | None = None
    miss_reason: str | None = None
    diverged_at: int | None = None


class SegmentId(msgspec.Struct, array_like=True, frozen=True):
    """Identity of a segment."""

    key: bytes
    kind: int


class Release(_Body, frozen=True):
    """`k.release`: the lease has ended; without reply.

    Attributes:
        verified, corrupt, raced: what the reader found out about files on the way.
    """

    lease: int
    verified: list[SegmentId] = []
    corrupt: list[SegmentId] = []
    raced: list[SegmentId] = []


class WantedSegment(_Body, frozen=True):
    """A segment that a worker wants to write; the fields of `kv.segment.SegmentMeta`, and the room its payload needs."""

    key: bytes
    kind: int
    parent: bytes
    root: bytes
    start: int
    end: int
    tokens: bytes
    covers_from: int
    block_tokens: int
    cuttable: bool
    reason: int
    capacity_bytes: Size
    reply_start: int | None = None


class Reserve(_Body, frozen=True):
    """`k.reserve`: room for segments, parents before children."""

    segments: list[WantedSegment]


class Reserved(_Body, frozen=True):
    """One outcome of `k.reserve`.

    Attributes:
        token: names the reservation; 0 when none was given.
        there: the segment is stored already.
        refused: why not, else None.
        path: the temporary file. inode: of a recycled file that lies there; 0: the writer creates it.
        generation: what the writer puts into the first 8 bytes before it overwrites anything.
    """

    token: int = 0
    there: bool = False
    refused: str | None = None
    tier: str = ""
    path: str = ""
    inode: int = 0
    generation: int = 0
    file_bytes: int = 0


class ReserveAnswer(_Body, frozen=True):
    """Reply to `k.reserve`: one outcome per segment, in order."""

    outcomes: list[Reserved]


class Renew(_Body, frozen=True):
    """`k.renew`: are these reservations still mine? Restarts their TTL."""

    tokens: list[int]


class RenewAnswer(_Body, frozen=True):
    """Reply to `k.renew`, one flag per token."""

    ours: list[bool]


class Written(_Body, frozen=True):
    """A published file. `adopted`: it was there already under its final name and is good; the temporary file is gone."""

    token: int
    inode: int
    generation: int
    payload_bytes: Size
    file_bytes: Size
    adopted: bool = False


class Announce(_Body, frozen=True):
    """`k.announce`: these files have their final names."""

    written: list[Written]


class AnnounceAnswer(_Body, frozen=True):
    """Reply to `k.announce`: whether each is visible now."""

    visible: list[bool]


class Abort(_Body, frozen=True):
    """`k.abort`: reservations given back; without reply.

    Attributes:
        inodes: of the temporary files, in the same order; 0 where none was made.
        no_space: the filesystem of the tier was full.
    """

    tokens: list[int]
    inodes: list[int]
    no_space: bool = False


class Forget(_Body, frozen=True):
    """`k.forget`, daemon to worker: unmap these files as soon as nothing uses them, then say `k.forgotten`."""

    files: list[FileId]


class Forgotten(_Body, frozen=True):
    """`k.forgotten`: these files are not mapped any more; also said unasked."""

    files: list[FileId]


@dataclass(frozen=True)
class CacheKind:
    """A message to the daemon: type of its body, and of the reply where there is one."""

    body: type[Any]
    answer: type[Any] | None


CACHE_KINDS: dict[str, CacheKind] = {
    "k.hello": CacheKind(WorkerRegister, Registered),
    "k.bye": CacheKind(Nothing, Ok),
    "k.ping": CacheKind(Nothing, Ok),
    "k.lookup": CacheKind(Lookup, Found),
    "k.release": CacheKind(Release, None),
    "k.reserve": CacheKind(Reserve, ReserveAnswer),
    "k.renew": CacheKind(Renew, RenewAnswer),
    "k.announce": CacheKind(Announce, AnnounceAnswer),
    "k.abort": CacheKind(Abort, None),
    "k.forgotten": CacheKind(Forgotten, None),
    "cache": CacheKind(CacheCall, CacheAnswer),
}
"""Worker (or controller) to daemon. All but `cache` and `k.ping` need a registration first. The other way, unasked, come `k.who`
(no body) and `k.forget`."""

# ---- operations of the `cache` call ------------------------------------------------------------------------------


class _Args(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Base of arguments: a typo is an error."""


class Stats(_Args, frozen=True):
    """`stats`: budgets and bytes per tier, segments and bytes per model, counters."""


class List(_Args, frozen=True):
    """`ls`: segments, most valuable first. `model`: only of that model."""

    model: str | None = None
    limit: int = 100


class Gc(_Args, frozen=True):
    """`gc`: drop what is superseded, orphaned or recyclable, and count the bytes anew."""


class EvictSegments(_Args, frozen=True):
    """`evict`: drop segments of one model, of one row (`key`, hex: it and what hangs below), or all. Leased ones stay."""

    model: str | None = None
    key: str | None = None
    everything: bool = False
    pinned: bool = False


class VerifyFiles(_Args, frozen=True):
    """`verify`: read every payload (of a model) and compare checksums; corrupt files are removed."""

    model: str | None = None


class Pin(_Args, frozen=True):
    """`pin`, `unpin`: the segments of the row that ends at `key` (hex)."""

    key: str


class Shrink(_Args, frozen=True):
    """`shrink`: let shared memory go until at most `target_bytes` are in use, for memory pressure."""

    target_bytes: Size


CACHE_OPS: dict[str, type[_Args]] = {
    "stats": Stats,
    "ls": List,
    "gc": Gc,
    "evict": EvictSegments,
    "verify": VerifyFiles,
    "pin": Pin,
    "unpin": Pin,
    "shrink": Shrink,
}
"""`op` of a `cache` call → type of its `arguments`."""
