"""Lookups: ask, map what was leased, verify it where that is due, hand out addresses, release. I/O thread only.

`Leased.intact` alone is called by the engine thread; it reads memory and sets a flag.
"""

import ctypes
import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from erllama_host.kv.reuse import MissReason, Reuse
from erllama_host.kv.segment import KEY_OFFSET, SegmentMeta
from erllama_host.protocol import cache as m
from erllama_host.transport.shm import FileRef, Mapping, MappingPool, map_path
from workers.kv_files import payload_checksum, read_header
from workers.kv_jobs import Jobs
from workers.kv_link import DaemonLink
from workers.kv_types import LookupQuery, LookupResult, Pending

READ_AHEAD_BYTES = 2 << 20
"""At a time: 0.13 ms in shared memory, and about 10 ms from a slow disk."""

VERIFY_MARGIN_S = 0.02
"""Verifying stops so long before a lookup's deadline; what has been verified by then is delivered."""


@dataclass(slots=True, eq=False)
class Leased:
    """A leased segment, mapped; see `LeasedSegment` for the contract."""

    meta: SegmentMeta
    use_end: int
    tier: str
    address: int
    num_bytes: int
    payload_checksum: int
    mapping: Mapping
    generation: int
    file: FileRef
    raced: bool = False

    def intact(self) -> bool:
        """Whether the file still holds this key in this generation."""
        key = ctypes.string_at(self.mapping.address + KEY_OFFSET, len(self.meta.key))
        if self.mapping.generation == self.generation and key == self.meta.key:
            return True
        self.raced = True
        return False

    @property
    def segment_id(self) -> m.SegmentId:
        """Its name on the wire."""
        return m.SegmentId(self.meta.key, int(self.meta.kind))


@dataclass(slots=True)
class _Lease:
    segments: list[Leased] = field(default_factory=list)
    verified: list[m.SegmentId] = field(default_factory=list)
    corrupt: list[m.SegmentId] = field(default_factory=list)
    raced: list[m.SegmentId] = field(default_factory=list)
    mapped: list[FileRef] = field(default_factory=list)
    """Files mapped for it, and not read yet."""


class Reader:
    """Answers the engine's lookups."""

    def __init__(self, link: DaemonLink, pool: MappingPool, jobs: Jobs, counters: Counter[str]) -> None:
        self._link = link
        self._pool = pool
        self._jobs = jobs
        self._counters = counters
        self._leases: dict[int, _Lease] = {}

    def lookup(self, query: LookupQuery, pending: Pending[LookupResult], started_s: float) -> None:
        """Ask the daemon; `pending` gets the answer, with everything mapped."""
        if pending.done():
            return

        def answered(found: m.Found | None) -> None:
            if found is None:
                pending.resolve(LookupResult(miss_reason=MissReason.DAEMON_AWAY))
            else:
                self._jobs.add_urgent(self._deliver(query, found, pending, started_s))

        body = m.Lookup(
            root=query.root,
            block_keys=b"".join(query.block_keys),
            tokens=query.tokens,
            prompt_key=query.prompt_key,
            reuse=query.reuse,
            parent_key=query.parent_key,
            wait_ms=query.wait_ms,
            cautious=query.cautious,
        )
        self._link.call("k.lookup", body, answered)

    def release(self, lease_id: int) -> None:
        """End a lease; unmap what the daemon wants forgotten."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        lease.raced += [segment.segment_id for segment in lease.segments if segment.raced]
        self._counters["raced"] += len(lease.raced)
        gone: list[FileRef] = []
        for segment in lease.segments:
            gone += self._pool.release(segment.file)
        self._link.tell(
            "k.release",
            m.Release(lease=lease_id, verified=lease.verified, corrupt=lease.corrupt, raced=lease.raced),
        )
        self.tell_forgotten(gone)

    def tell_forgotten(self, files: list[FileRef]) -> None:
        """These are not mapped any more."""
        if files:
            self._link.tell("k.forgotten", m.Forgotten(files=[m.FileId(*file) for file in files]))

    # ---- inside --------------------------------------------------------------------------------------------------

    def _deliver(
        self, query: LookupQuery, found: m.Found, pending: Pending[LookupResult], started_s: float
    ) -> Iterator[None]:
        result = LookupResult(
            hit_len=found.hit_len,
            miss_reason=MissReason(found.miss_reason) if found.miss_reason else None,
            diverged_at=found.diverged_at,
            lease=found.lease or None,
        )
        lease = _Lease()
        yield from self._fill(result, lease, query.reuse, found, pending.deadline_s - VERIFY_MARGIN_S)
        result.lookup_ms = (time.monotonic() - started_s) * 1000
        self._counters["lookups"] += 1
        if found.lease:
            self._leases[found.lease] = lease
        if not pending.resolve(result):
            self._counters["late_lookups"] += 1
            self.release(found.lease)
        elif held := [file for file in lease.mapped if self._pool.acquire(file) is not None]:
            self._jobs.add_background(self._read_ahead(held))

    def _read_ahead(self, files: list[FileRef]) -> Iterator[None]:
        """Stay ahead of the engine, which restores in this order: it would take half of its time for page faults."""
        for file in files:
            mapping = self._pool.peek(file)
            for start in range(0, mapping.num_bytes, READ_AHEAD_BYTES):
                mapping.read_ahead(start, min(start + READ_AHEAD_BYTES, mapping.num_bytes))
                yield
            self.tell_forgotten(self._pool.release(file))

    def _fill(
        self, result: LookupResult, lease: _Lease, reuse: Reuse, found: m.Found, deadline_s: float
    ) -> Iterator[None]:
        for segment in found.segments:
            is_new = not self._pool.has((segment.tier, segment.inode))
            if is_new:
                yield  # mapping a file takes a while; most are mapped, and must not wait for other work
            usable = self._take(segment, lease)
            if segment.verify:
                usable = yield from self._verified(usable, lease, deadline_s)
            elif is_new and isinstance(usable, Leased):
                lease.mapped.append(usable.file)
            if isinstance(usable, MissReason):
                _cut(result, reuse, usable)
                return
            result.segments.append(usable)
        if found.logits is not None:
            logits = self._take(found.logits, lease)
            if found.logits.verify:
                logits = yield from self._verified(logits, lease, deadline_s)
            result.logits = logits if isinstance(logits, Leased) else None

    def _take(self, segment: m.FoundSegment, lease: _Lease) -> Leased | MissReason:
        """Map one segment; returns it, or why it cannot be used."""
        leased = self._map(segment)
        if leased is None:
            lease.raced.append(m.SegmentId(segment.key, segment.kind))
            return MissReason.RACED
        lease.segments.append(leased)
        return leased

    def _verified(
        self, taken: Leased | MissReason, lease: _Lease, deadline_s: float
    ) -> Generator[None, None, Leased | MissReason]:
        """Compare the payload checksum, since nobody has; returns the segment, or why it cannot be used."""
        if isinstance(taken, MissReason):
            return taken
        good = yield from _verify(taken, deadline_s)
        if good is None:
            return MissReason.DAEMON_AWAY  # not in time
        (lease.verified if good else lease.corrupt).append(taken.segment_id)
        self._counters["verified" if good else "corrupt"] += 1
        return taken if good else MissReason.CORRUPT

    def _map(self, segment: m.FoundSegment) -> Leased | None:
        """None: the file is not (or not any more) what the daemon said."""
        file = (segment.tier, segment.inode)
        mapping = self._pool.acquire(file)
        if mapping is None:
            try:
                mapping = map_path(segment.path)
            except (OSError, ValueError):
                return None
            if mapping.inode != segment.inode or self._pool.has(file):
                mapping.close()
                return None
            self._pool.add(file, mapping)
        header = read_header(mapping)
        if header is None or not _is_named(header.meta, segment) or mapping.generation != segment.generation:
            self.tell_forgotten(self._pool.release(file))
            return None
        return Leased(
            meta=header.meta,
            use_end=segment.use_end,
            tier=segment.tier,
            address=mapping.address + header.payload_offset,
            num_bytes=header.payload_bytes,
            payload_checksum=header.payload_checksum,
            mapping=mapping,
            generation=segment.generation,
            file=file,
        )


def _is_named(meta: SegmentMeta, segment: m.FoundSegment) -> bool:
    return meta.key == segment.key and meta.kind == segment.kind


def _cut(result: LookupResult, reuse: Reuse, why: MissReason) -> None:
    """The next segment turned out to be unusable: keep what may be used without it."""
    if reuse is Reuse.STATE:
        result.segments.clear()
    result.hit_len = result.segments[-1].use_end if result.segments else 0
    result.miss_reason = why
    result.diverged_at = None


def _verify(leased: Leased, deadline_s: float) -> Generator[None, None, bool | None]:
    """Compare the payload checksum, in slices; None when the deadline came first."""
    found: int | None = None
    for value in payload_checksum(leased.mapping, leased.address - leased.mapping.address, leased.num_bytes):
        if time.monotonic() > deadline_s:
            return None
        found = value
        yield
    return found == leased.payload_checksum
