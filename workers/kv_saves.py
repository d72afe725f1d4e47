"""From a sequence into the store: reserve, pack, publish, a bounded number of packs a tick. Owned by the engine thread.

A *job* is some segments of one sequence, parents first. It asks for room, which also says what is stored already, and packs when
the answer is there. A job is void once its sequence's cells changed otherwise than by growing.

Where state cannot be packed later (a snapshot of recurrent state, a window that moves on), the job *pauses* its sequence: it stays
out of ticks until its bytes are taken, about a millisecond for every block.
"""

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

from erllama_host.kv.reuse import Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind
from workers.cells import LiveSequence
from workers.counters import Counters
from workers.kv_keys import Piece
from workers.kv_store import KvStore
from workers.kv_types import AlreadyThere, Pending, Refused, Reservation, ReserveOutcome, SegmentSpec
from workers.pool import Pool
from workers.sequence import CacheTally

RETRY_S = 2.0
"""After a refusal (daemon away, tier full) a sequence is not offered again before this."""


@dataclass(slots=True, eq=False)
class _Job:
    live: LiveSequence
    incarnation: int
    pieces: Sequence[Piece]
    pending: Pending[list[ReserveOutcome]]
    tally: CacheTally | None
    pauses: bool
    done: int = 0

    @property
    def is_void(self) -> bool:
        return self.incarnation != self.live.incarnation


class Saver:
    """See the module docstring."""

    def __init__(self, pool: Pool, store: KvStore, counters: Counters) -> None:
        self._pool = pool
        self._backend = pool.backend
        self._store = store
        self._counters = counters
        self._jobs: list[_Job] = []
        self._block_bytes: dict[int, int] = {}
        self._not_before: dict[int, float] = {}

    @property
    def is_busy(self) -> bool:
        """Whether jobs are open."""
        return bool(self._jobs)

    def pauses(self, live: LiveSequence) -> bool:
        """Whether a sequence must not be computed now: its state is about to be taken."""
        return live.saves_open > 0 and any(job.pauses and job.live is live for job in self._jobs)

    def may_ask(self, live: LiveSequence) -> bool:
        """Whether it makes sense to begin a job for a sequence."""
        if live.unsaveable:
            return False
        return not self._not_before or time.monotonic() >= self._not_before.get(live.seq, 0.0)

    def begin(self, live: LiveSequence, pieces: list[Piece], tally: CacheTally | None, *, pauses: bool = False) -> None:
        """Ask for room for `pieces`, parents first."""
        specs = self._specs(live, pieces)
        if not specs:
            return
        job = _Job(live, live.incarnation, pieces[: len(specs)], self._store.reserve(specs), tally, pauses)
        live.saves_open += 1
        self._jobs.append(job)

    def advance(self, max_packs: int) -> bool:
        """Pack up to `max_packs` segments of jobs whose room is there. Returns whether anything moved."""
        moved = False
        for job in list(self._jobs):
            if job.pending.done():
                max_packs -= self._work(job, job.pending.result(), max_packs)
                moved = True
            if max_packs <= 0:
                break
        return moved

    def complete(self, deadline_s: float) -> None:
        """Wait for the room of all open jobs and pack all of it: before a context goes, or a process."""
        for job in list(self._jobs):
            if time.monotonic() < deadline_s:
                self._work(job, job.pending.wait(), len(job.pieces))
            else:
                self._close(job)

    def save_now(self, live: LiveSequence, pieces: list[Piece], timeout_s: float) -> None:
        """Reserve, pack and hand over at once; blocks up to `timeout_s` for the daemon."""
        specs = self._specs(live, pieces)
        if specs:
            pending = self._store.reserve(specs, timeout_s)
            job = _Job(live, live.incarnation, pieces[: len(specs)], pending, None, False)
            live.saves_open += 1
            self._jobs.append(job)
            self._work(job, pending.wait(), len(pieces))

    # --- one job ------------------------------------------------------------------------------------------------------

    def _specs(self, live: LiveSequence, pieces: list[Piece]) -> list[SegmentSpec]:
        """Up to the first piece that cannot be packed: what comes after it would hang in the air."""
        specs: list[SegmentSpec] = []
        for piece in pieces:
            size = self._size(live, piece)
            if not size:
                live.unsaveable = True
                self._counters["saves_impossible"] += 1
                break
            specs.append(SegmentSpec(piece.meta, size))
        return specs

    def _size(self, live: LiveSequence, piece: Piece) -> int:
        if piece.logits is not None:
            return piece.logits.nbytes
        length = piece.end - piece.start
        if piece.meta.kind is not SegmentKind.BLOCK:
            return self._backend.piece_size(live.seq, piece.start, piece.end, piece.kind)
        if not self._block_bytes.get(length):  # blocks are all one size
            self._block_bytes[length] = self._backend.piece_size(live.seq, piece.start, piece.end, piece.kind)
        return self._block_bytes[length]

    def _work(self, job: _Job, outcomes: list[ReserveOutcome], max_packs: int) -> int:
        """Go on with a job; returns how many segments were packed."""
        packed = 0
        while job.done < len(outcomes) and packed < max_packs:
            outcome, piece = outcomes[job.done], job.pieces[job.done]
            if job.is_void or job.live.unsaveable:
                break
            if isinstance(outcome, Refused) and outcome.reason is not Refusal.BEING_WRITTEN:
                self._refused(job, piece, outcome.reason)
                break
            job.done += 1
            if isinstance(outcome, AlreadyThere | Refused):
                _advance(job.live, piece)
            else:
                packed += 1
                if not self._pack(job, piece, outcome):
                    job.live.unsaveable = True
        if job.done < len(outcomes) and packed >= max_packs and not job.live.unsaveable:
            return packed
        for outcome in outcomes[job.done :]:
            if not isinstance(outcome, AlreadyThere | Refused):
                self._store.abort(outcome)
        self._close(job)
        return packed

    def _close(self, job: _Job) -> None:
        self._jobs.remove(job)
        job.live.saves_open -= 1

    def _pack(self, job: _Job, piece: Piece, room: Reservation) -> bool:
        started = time.perf_counter()
        if piece.logits is not None:
            size = piece.logits.nbytes
            ctypes.memmove(room.address, piece.logits.ctypes.data, size)
        else:
            size = self._backend.pack(
                job.live.seq, piece.start, piece.end, piece.kind, room.address, room.capacity_bytes
            )
        if not size:
            self._store.abort(room)
            self._counters["saves_impossible"] += 1
            return piece.meta.kind is SegmentKind.LOGITS
        self._store.publish(room, size)
        self._counters["pack_ms"] += (time.perf_counter() - started) * 1e3
        self._counters[f"saves_{piece.meta.reason.name.lower()}"] += 1
        if piece.logits is None:
            self._counters["saved_tokens"] += piece.meta.num_tokens
            if job.tally is not None:
                job.tally.created_tokens += piece.meta.num_tokens
        _advance(job.live, piece)
        return True

    def _refused(self, job: _Job, piece: Piece, reason: Refusal) -> None:
        """Nothing after a refused segment is worth storing now; offer it again later."""
        self._counters[f"saves_refused_{reason.value}"] += 1
        live = job.live
        live.asked_end = min(live.asked_end, piece.meta.start)
        now = time.monotonic()
        self._not_before = {seq: at for seq, at in self._not_before.items() if at > now}
        self._not_before[live.seq] = now + RETRY_S


def _advance(live: LiveSequence, piece: Piece) -> None:
    """The segment is, or is about to be, in the store: that much of the row can be had again."""
    if piece.meta.kind is SegmentKind.LOGITS or piece.meta.reason is SaveReason.PREFIX:
        return
    if piece.start <= live.saved_end < piece.end and piece.meta.kind is not SegmentKind.SNAPSHOT:
        live.saved_end = piece.end
    elif piece.meta.kind is SegmentKind.SNAPSHOT:
        live.saved_end = max(live.saved_end, piece.end)
