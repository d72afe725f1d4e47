"""Saves: reserve, prepare a writable region, and after the engine has packed it: seal, check, link, announce. I/O thread only.

Each stage is there for a crash (docs/internals/publish-protocol.md). Many segments go through a stage together: a prefill of 2 048
tokens saves eight blocks with three messages.
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from erllama_host.kv.reuse import Refusal
from erllama_host.kv.segment import SegmentHeader, SegmentKind, SegmentMeta, file_name
from erllama_host.protocol import cache as m
from erllama_host.transport.shm import FileRef, MappingPool
from workers.kv_files import Linked, link_final, open_reserved, payload_address, payload_checksum, seal
from workers.kv_jobs import Jobs
from workers.kv_link import DaemonLink
from workers.kv_types import AlreadyThere, Pending, Refused, ReserveOutcome, SegmentSpec

BATCH = 16
"""Segments that are checked and announced in one message."""
UNPUBLISHED = ("saves_dropped", "saves_lost", "saves_unconfirmed")
"""Counters of packed segments that may not be in the store: no daemon, a reservation taken back, no answer after the link."""


@dataclass(slots=True, eq=False)
class Held:
    """A reservation with its region; see `Reservation` for the contract."""

    meta: SegmentMeta
    address: int
    capacity_bytes: int
    token: int
    temporary: str
    file: FileRef
    generation: int
    lost: bool = False
    """The daemon has given it up; publishing is without effect."""


@dataclass(slots=True)
class _Sealed:
    held: Held
    header: SegmentHeader


class Writer:
    """Carries out the engine's saves."""

    def __init__(
        self,
        link: DaemonLink,
        pool: MappingPool,
        jobs: Jobs,
        counters: Counter[str],
        finished: Callable[[bytes], None],
    ) -> None:
        """
        Args:
            finished: called with the key when a segment given to `publish` is visible, or never will be.
        """
        self._link = link
        self._pool = pool
        self._jobs = jobs
        self._counters = counters
        self._finished = finished
        self._held: dict[int, Held] = {}
        self._sealed: list[_Sealed] = []

    # ---- reserve -------------------------------------------------------------------------------------------------

    def reserve(self, specs: Sequence[SegmentSpec], pending: Pending[list[ReserveOutcome]]) -> None:
        """Ask the daemon, then prepare regions; `pending` gets one outcome per spec."""
        if pending.done():
            return

        def answered(answer: m.ReserveAnswer | None) -> None:
            if answer is None:
                pending.resolve([_refused(spec, Refusal.DAEMON_AWAY) for spec in specs])
            else:
                self._jobs.add_urgent(self._prepare_all(specs, answer.outcomes, pending))

        self._link.call("k.reserve", m.Reserve(segments=[_wanted(spec) for spec in specs]), answered)

    def _prepare_all(
        self, specs: Sequence[SegmentSpec], given: list[m.Reserved], pending: Pending[list[ReserveOutcome]]
    ) -> Iterator[None]:
        outcomes: list[ReserveOutcome] = []
        for spec, reserved in zip(specs, given, strict=True):
            outcomes.append(self._prepare(spec, reserved))
            yield
        if not pending.resolve(outcomes):
            self.abort([outcome for outcome in outcomes if isinstance(outcome, Held)])

    def _prepare(self, spec: SegmentSpec, reserved: m.Reserved) -> ReserveOutcome:
        if reserved.there:
            self._counters["already_there"] += 1
            return AlreadyThere(spec.meta.key, spec.meta.kind)
        if reserved.refused is not None:
            self._counters[f"refused_{reserved.refused}"] += 1
            return _refused(spec, Refusal(reserved.refused))
        try:
            held = self._open(spec, reserved)
        except OSError as error:
            self._counters["reserve_failed"] += 1
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._link.tell("k.abort", m.Abort(tokens=[reserved.token], inodes=[0], no_space=full))
            return _refused(spec, Refusal.NO_SPACE)
        self._held[held.token] = held
        return held

    def _open(self, spec: SegmentSpec, reserved: m.Reserved) -> Held:
        known = self._pool.acquire((reserved.tier, reserved.inode)) if reserved.inode else None
        mapping = open_reserved(reserved.path, reserved.file_bytes, reserved.generation, known)
        file = (reserved.tier, mapping.inode)
        if known is None:
            self._pool.add(file, mapping)
        address, room = payload_address(mapping, spec.meta)
        assert room >= spec.capacity_bytes
        return Held(spec.meta, address, room, reserved.token, reserved.path, file, reserved.generation)

    def abort(self, reservations: Sequence[Held]) -> None:
        """Give reservations back."""
        if not reservations:
            return
        inodes = [held.file[1] for held in reservations]
        for held in reservations:
            self._let_go(held)
        self._link.tell("k.abort", m.Abort(tokens=[held.token for held in reservations], inodes=inodes))

    # ---- publish -------------------------------------------------------------------------------------------------

    def publish(self, held: Held, payload_bytes: int) -> None:
        """Start with a packed region."""
        self._jobs.add_background(self._seal(held, payload_bytes))

    def _seal(self, held: Held, payload_bytes: int) -> Iterator[None]:
        mapping = self._pool.peek(held.file)
        start = held.address - mapping.address
        payload_sum = 0
        for value in payload_checksum(mapping, start, payload_bytes):
            payload_sum = value or 0
            yield
        self._sealed.append(_Sealed(held, seal(mapping, held.meta, payload_bytes, payload_sum)))

    def check_sealed(self) -> None:
        """Move sealed segments on, when a batch is full or nothing more is being sealed."""
        if self._sealed and (len(self._sealed) >= BATCH or not self._jobs.has_background):
            batch, self._sealed = self._sealed, []
            body = m.Renew(tokens=[sealed.held.token for sealed in batch])
            self._link.call("k.renew", body, lambda answer: self._checked(batch, answer))

    def _checked(self, batch: list[_Sealed], answer: m.RenewAnswer | None) -> None:
        if answer is None:
            for sealed in batch:
                self._drop(sealed.held, "saves_dropped")
            return
        ours = []
        for sealed, is_ours in zip(batch, answer.ours, strict=True):
            if is_ours and not sealed.held.lost:
                ours.append(sealed)
            else:
                self._drop(sealed.held, "saves_lost")
        self._jobs.add_background(self._link_all(ours))

    def _link_all(self, batch: list[_Sealed]) -> Iterator[None]:
        linked: list[tuple[_Sealed, Linked]] = []
        for sealed in batch:
            held = sealed.held
            mapping = self._pool.peek(held.file)
            result = link_final(held.temporary, self._final_path(held), mapping, sealed.header)
            if result is None:
                self._drop(held, "saves_lost")
            else:
                linked.append((sealed, result))
            yield
        if linked:
            self._announce(linked)

    def _announce(self, linked: list[tuple[_Sealed, Linked]]) -> None:
        written = [
            m.Written(
                token=sealed.held.token,
                inode=result.inode,
                generation=result.generation,
                payload_bytes=result.payload_bytes,
                file_bytes=result.file_bytes,
                adopted=result.adopted,
            )
            for sealed, result in linked
        ]

        def answered(answer: m.AnnounceAnswer | None) -> None:
            # Without an answer the files are whole and named: whichever daemon comes next adopts them.
            visible = answer.visible if answer is not None else [False] * len(linked)
            for (sealed, result), is_visible in zip(linked, visible, strict=True):
                self._let_go(sealed.held, nameless=result.adopted)
                self._counters["saves" if is_visible else "saves_unconfirmed"] += 1
                self._counters["saved_bytes"] += result.payload_bytes if is_visible else 0
                self._finished(sealed.held.meta.key)

        self._link.call("k.announce", m.Announce(written=written), answered)

    def _final_path(self, held: Held) -> str:
        tier_path = held.temporary.rpartition("/tmp/")[0]  # noqa: S108
        return f"{tier_path}/{file_name(held.meta.key, SegmentKind(held.meta.kind))}"

    # ---- ends ----------------------------------------------------------------------------------------------------

    def forget_token(self, token: int) -> None:
        """The daemon has given a reservation up. Its region stays writable for the engine until it publishes or aborts."""
        held = self._held.get(token)
        if held is not None:
            held.lost = True

    def lose_all(self) -> None:
        """The daemon was replaced: it knows none of our reservations."""
        for held in self._held.values():
            held.lost = True

    def _drop(self, held: Held, counter: str) -> None:
        """A packed segment is not going to be published. The daemon, this one or the next, removes its file."""
        held.lost = True
        self._counters[counter] += 1
        self.abort([held])
        self._finished(held.meta.key)

    def _let_go(self, held: Held, *, nameless: bool = False) -> None:
        """Stop using a region. A file without a name cannot come back, so its mapping is not kept."""
        self._held.pop(held.token, None)
        gone = self._pool.release(held.file)
        if (nameless or held.lost) and self._pool.forget(held.file) and held.file not in gone:
            gone.append(held.file)
        if gone:
            self._link.tell("k.forgotten", m.Forgotten(files=[m.FileId(*file) for file in gone]))


def _refused(spec: SegmentSpec, reason: Refusal) -> Refused:
    return Refused(spec.meta.key, spec.meta.kind, reason)


def _wanted(spec: SegmentSpec) -> m.WantedSegment:
    meta = spec.meta
    return m.WantedSegment(
        key=meta.key,
        kind=int(meta.kind),
        parent=meta.parent,
        root=meta.root,
        start=meta.start,
        end=meta.end,
        tokens=meta.tokens,
        covers_from=meta.covers_from,
        block_tokens=meta.block_tokens,
        cuttable=meta.cuttable,
        reason=int(meta.reason),
        capacity_bytes=spec.capacity_bytes,
        reply_start=meta.reply_start,
    )
