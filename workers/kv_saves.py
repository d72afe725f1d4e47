"""From a sequence into the store: reserve, pack, publish, a bounded number of packs a tick. Owned by the engine thread.

A *job* is some segments of one sequence, parents first. It asks for room, which also says what is stored already, and packs when
the answer is there. A job is void once its sequence's cells changed otherwise than by growing.

Where state cannot be packed later (a snapshot of recurrent state, a window that moves on), the job *pauses* its sequence: it stays
out of ticks until its bytes are taken, about a millisecond for every block. Such a job gives up soon. One that pauses nobody is
patient: a busy machine may take a second to answer, and what was refused goes with the worker if that dies.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
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

MAX_PIECES_PER_JOB = 4
"""Fresh shared memory costs about 0.5 ms a MB before it is handed out, so a long row is asked for in parts."""
PATIENCE_S = 5.0
"""How long a job that pauses nobody waits for its room."""
RETRY_S = 2.0
"""After a refusal that passes (daemon away, recovering) a sequence is not offered again before this."""
FULL_RETRY_S = 30.0
"""The same after one that lasts: a tier is not less full two seconds later."""
_PASSING = frozenset({Refusal.DAEMON_AWAY, Refusal.RECOVERING})

Clock = Callable[[], float]


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

    def __init__(self, pool: Pool, store: KvStore, counters: Counters, clock: Clock, *, snapshots: bool) -> None:
        """`snapshots`: only a snapshot makes a point of this model's rows usable. `clock`: paces what is offered again."""
        self._backend = pool.backend
        self._store = store
        self._snapshots = snapshots
        self._counters = counters
        self._clock = clock
        self._jobs: list[_Job] = []
        self._block_bytes: dict[int, int] = {}

    @property
    def is_busy(self) -> bool:
        """Whether jobs are open."""
        return bool(self._jobs)

    def pauses(self, live: LiveSequence) -> bool:
        """Whether a sequence must not be computed now: its state is about to be taken."""
        return live.saves_open > 0 and any(job.pauses and job.live is live for job in self._jobs)

    def may_ask(self, live: LiveSequence) -> bool:
        """Whether it makes sense to begin a job now for a sequence that was refused before."""
        return not live.unsaveable and (not live.no_save_before or self._clock() >= live.no_save_before)

    def begin(self, live: LiveSequence, pieces: list[Piece], tally: CacheTally | None, *, pauses: bool = False) -> None:
        """Ask for room for `pieces`, parents first."""
        specs = self._specs(live, pieces)
        for first in range(0, len(specs), MAX_PIECES_PER_JOB):
            some = specs[first : first + MAX_PIECES_PER_JOB]
            chosen = pieces[first : first + len(some)]
            pending = self._store.reserve(some, None if pauses else PATIENCE_S)
            self._open(_Job(live, live.incarnation, chosen, pending, tally, pauses))

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
            if time.monotonic() >= deadline_s:
                break
            if job.pending.wait_until(deadline_s):  # else it stays open, and gives back whatever room it still gets
                self._work(job, job.pending.result(), len(job.pieces))

    def save_now(self, live: LiveSequence, pieces: list[Piece], timeout_s: float) -> None:
        """Reserve, pack and hand over at once; blocks up to `timeout_s` for the daemon."""
        deadline = time.monotonic() + timeout_s
        specs = self._specs(live, pieces)
        for first in range(0, len(specs), MAX_PIECES_PER_JOB):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            some = specs[first : first + MAX_PIECES_PER_JOB]
            pending = self._store.reserve(some, left)
            job = _Job(live, live.incarnation, pieces[first : first + len(some)], pending, None, False)
            self._open(job)
            self._work(job, pending.wait(), len(some))

    def _open(self, job: _Job) -> None:
        job.live.saves_open += 1
        self._jobs.append(job)

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
            if job.is_void or job.live.unsaveable or _hangs_in_the_air(job.live, piece):
                break
            if isinstance(outcome, Refused) and outcome.reason is not Refusal.BEING_WRITTEN:
                self._refused(job, piece, outcome.reason)
                break
            job.done += 1
            if isinstance(outcome, AlreadyThere | Refused):
                self._advance(job.live, piece)
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
            return False
        self._store.publish(room, size)
        self._counters["pack_ms"] += (time.perf_counter() - started) * 1e3
        self._counters[f"saves_{piece.meta.reason.name.lower()}"] += 1
        new_tokens = self._advance(job.live, piece)
        self._counters["saved_tokens"] += new_tokens
        if job.tally is not None:
            job.tally.created_tokens += new_tokens
        return True

    def _advance(self, live: LiveSequence, piece: Piece) -> int:
        """The segment is, or is about to be, in the store; returns how many tokens that makes reachable anew."""
        kind = piece.meta.kind
        before = max(live.saved_end, live.chain_end)
        if kind is SegmentKind.SNAPSHOT:
            live.saved_end = max(live.saved_end, piece.end)
        elif kind is not SegmentKind.LOGITS and piece.start <= live.chain_end < piece.end:
            live.chain_end = piece.end
            if not self._snapshots:
                live.saved_end = max(live.saved_end, piece.end)
        return max(live.saved_end, live.chain_end) - before

    def _refused(self, job: _Job, piece: Piece, reason: Refusal) -> None:
        """Nothing after a refused segment is worth storing now; offer it again later."""
        self._counters[f"saves_refused_{reason.value}"] += 1
        live = job.live
        live.asked_end = min(live.asked_end, piece.meta.start)
        if reason is Refusal.NO_PARENT:
            live.distrust()  # the store has let go of what it had of this row
        live.no_save_before = self._clock() + (RETRY_S if reason in _PASSING else FULL_RETRY_S)


def _hangs_in_the_air(live: LiveSequence, piece: Piece) -> bool:
    """Whether what comes before a segment was refused a moment ago, so that nobody could ever reach it."""
    meta = piece.meta
    needs_before = meta.covers_from if meta.kind is SegmentKind.SNAPSHOT else meta.start
    return (
        meta.reason is not SaveReason.PREFIX and meta.kind is not SegmentKind.LOGITS and needs_before > live.chain_end
    )
