"""From the store into a sequence: lookups and restores of admitted requests. Owned by the engine thread.

A visit to the store goes: ask (non-blocking), poll every tick, restore piece by piece within a time budget, give the lease back.
Whatever goes wrong on the way leaves a shorter prefix, and the rest is computed: a failed restore is a miss, never an error.
"""

import ctypes
import time
from dataclasses import dataclass

import numpy as np

from erllama_host.kv.keys import KeyChain
from erllama_host.kv.reuse import MissReason, Reuse
from erllama_host.kv.tokens import slice_tokens
from workers.backend.values import Logits, PieceKind
from workers.cells import LiveSequence
from workers.counters import Counters
from workers.kv_keys import piece_range
from workers.kv_store import KvStore
from workers.kv_types import LeasedSegment, LookupQuery, LookupResult, Pending
from workers.pool import Pool
from workers.sequence import Request

STREAMING_SLICE_S = 0.004
"""Restoring beside streams takes at most about so long a tick: a block of 256 tokens takes 0.3 to 4 ms."""
QUIET_SLICE_S = 0.05
WORTH_RESTORING_TOKENS = 16
"""Fewer tokens than this are computed in the time of a restore."""


@dataclass(slots=True)
class _Visit:
    pending: Pending[LookupResult]
    result: LookupResult | None = None
    todo: list[LeasedSegment] | None = None
    logits: Logits | None = None


class Restorer:
    """See the module docstring."""

    def __init__(self, pool: Pool, store: KvStore, counters: Counters) -> None:
        self._pool = pool
        self._backend = pool.backend
        self._store = store
        self._counters = counters
        self._visits: dict[str, _Visit] = {}
        self._orphans: list[Pending[LookupResult]] = []

    @property
    def waiting(self) -> bool:
        """Whether an answer of the store is outstanding."""
        return bool(self._orphans) or any(visit.result is None for visit in self._visits.values())

    def ask(self, ref: str, query: LookupQuery) -> None:
        """Begin a visit."""
        self._visits[ref] = _Visit(self._store.lookup(query))

    def done(self, request: Request) -> bool:
        """Whether the store has answered; then its findings are in the request's tally."""
        visit = self._visits[request.ref]
        if not visit.pending.done():
            return False
        visit.result = result = visit.pending.result()
        request.times.lookup_ms += result.lookup_ms
        request.tally.miss_reason = result.miss_reason.value if result.miss_reason is not None else None
        if result.diverged_at is not None:
            request.tally.diverged_at = max(result.diverged_at, request.tally.diverged_at or 0)
        self._counters["lookup_ms"] += result.lookup_ms
        return True

    def restore_some(self, request: Request, *, streaming: bool) -> bool:
        """Restore the next pieces, for one slice of time. True when nothing more can be restored."""
        started = time.perf_counter()
        visit = self._visits[request.ref]
        if visit.todo is None:
            visit.todo = self._choose(request, visit)
        until = started + (STREAMING_SLICE_S if streaming else QUIET_SLICE_S)
        while visit.todo:
            if not self._restore(request, visit.todo.pop(0)):
                visit.todo = []
            if time.perf_counter() >= until:
                break
        took_ms = (time.perf_counter() - started) * 1e3
        request.times.restore_ms += took_ms
        self._counters["restore_ms"] += took_ms
        if visit.todo:
            return False
        self._settle(request)
        return True

    def logits(self, request: Request) -> Logits | None:
        """The stored logits after the whole row, copied; None where there are none."""
        visit = self._visits.get(request.ref)
        if visit is None or visit.result is None:
            return None
        if visit.logits is None and visit.result.logits is not None:
            visit.logits = _read_logits(visit.result.logits, self._backend.info.n_vocab)
            if visit.logits is None:
                request.tally.miss_reason = MissReason.RACED.value
        return visit.logits

    def end(self, ref: str) -> None:
        """Give the lease back; harmless without a visit."""
        visit = self._visits.pop(ref, None)
        if visit is None:
            return
        if visit.result is not None:
            self._store.release(visit.result)
        else:
            self._orphans.append(visit.pending)

    def sweep(self) -> None:
        """Release what was found for requests that had gone by then."""
        for pending in [one for one in self._orphans if one.done()]:
            self._store.release(pending.result())
            self._orphans.remove(pending)

    # --- one request --------------------------------------------------------------------------------------------------

    def _choose(self, request: Request, visit: _Visit) -> list[LeasedSegment]:
        """The segments that bring more than is live already; the sequence is cut back to where they begin."""
        assert visit.result is not None and request.live is not None
        result, have = visit.result, request.num_kv
        reach = min(result.hit_len, request.most_reusable)
        completes = result.logits is not None and reach == len(request.row)
        if reach <= have:
            return []
        if reach - have < WORTH_RESTORING_TOKENS and not completes:
            request.tally.miss_reason = request.tally.miss_reason or MissReason.TOO_FEW
            return []
        segments = result.segments
        if self._backend.info.can_truncate:
            segments = [segment for segment in segments if segment.use_end > have]
            if not segments:
                return []
            start = min(have, piece_range(segments[0].meta)[0])
            if not self._pool.truncate(request.live, start):
                self._begin_anew(request)
                segments = result.segments
        else:
            self._begin_anew(request)
        request.tally.live_tokens = request.num_kv
        return list(segments)

    def _begin_anew(self, request: Request) -> None:
        """What is live does not go together with what is stored: rest it and take an empty sequence."""
        before = request.live
        assert before is not None
        if not before.tokens:
            return
        now = before.last_used
        self._pool.rest(before, now)
        request.live = self._pool.open(before.space, request.ref, now)

    def _restore(self, request: Request, segment: LeasedSegment) -> bool:
        """Append one segment; False ends the visit with what there is."""
        live, meta = request.live, segment.meta
        assert live is not None
        start, end, kind = piece_range(meta)
        use_end = min(segment.use_end, request.most_reusable)
        if use_end <= start:
            return False
        if use_end < end and not self._backend.cuttable(start, end, kind):
            request.tally.miss_reason = request.tally.miss_reason or MissReason.UNCUTTABLE
            return False
        failure = self._failure(request, live, segment, use_end)
        if failure is not None:
            self._counters[f"restores_{failure}"] += 1
            request.tally.miss_reason = failure
            self._undo(live, len(live.tokens))
            return False
        self._pool.grew(live, request.row[start:use_end])
        live.incomplete = kind is PieceKind.CELLS and not self._backend.info.can_truncate
        live.saved_end = use_end
        live.chain_end = start if kind is PieceKind.SNAPSHOT else use_end
        live.asked_end = live.chain_end - live.chain_end % meta.block_tokens
        tiers = request.tally.tier_tokens
        tiers[segment.tier] = tiers.get(segment.tier, 0) + use_end - start
        return True

    def _failure(self, request: Request, live: LiveSequence, segment: LeasedSegment, use_end: int) -> MissReason | None:
        """Copy one segment; None, or why its bytes are not to be used."""
        meta = segment.meta
        wanted = slice_tokens(request.packed(), meta.start, use_end)
        joins = piece_range(meta)[0] == len(live.tokens)
        if not joins or slice_tokens(meta.tokens, 0, use_end - meta.start) != wanted:
            return MissReason.CORRUPT
        if not segment.intact():
            return MissReason.RACED
        if not self._copy(live, segment, use_end):
            return MissReason.CORRUPT if self._pool.cells.free > meta.num_tokens else MissReason.NO_CELLS
        return None if segment.intact() else MissReason.RACED

    def _copy(self, live: LiveSequence, segment: LeasedSegment, use_end: int) -> bool:
        start, end, kind = piece_range(segment.meta)
        self._pool.make_room(end - start)
        address, size = segment.address, segment.num_bytes
        while not self._backend.restore(live.seq, start, end, kind, address, size, use_end):
            # No cells, or no such bytes: only the first can be helped, and only while the sequence is as before.
            if self._backend.length(live.seq) != start or not self._pool.drop_one():
                return False
        return True

    def _undo(self, live: LiveSequence, start: int) -> None:
        """Take back what bytes that are not to be trusted may have written."""
        if self._backend.length(live.seq) != start and not self._backend.truncate(live.seq, start):
            self._backend.clear(live.seq)
        self._pool.resync(live)

    def _settle(self, request: Request) -> None:
        """Make the tally true where something had to be thrown away: a sequence that could not be cut back, or cells of a
        model with recurrent state whose snapshot did not come."""
        live, visit = request.live, self._visits[request.ref]
        assert live is not None and visit.result is not None
        if live.incomplete:
            self._pool.drop(live)
            request.live = live = self._pool.open(live.space, request.ref, live.last_used)
        if not live.tokens:
            request.tally.live_tokens = 0
            request.tally.tier_tokens.clear()


def _read_logits(segment: LeasedSegment, n_vocab: int) -> Logits | None:
    """Copy a stored row of logits; None if it is not one, or was overwritten meanwhile."""
    if segment.num_bytes != 4 * n_vocab or not segment.intact():
        return None
    row: Logits = np.ctypeslib.as_array((ctypes.c_float * n_vocab).from_address(segment.address)).copy()
    return row if segment.intact() else None


def query_for(
    request: Request,
    chain: KeyChain,
    packed: bytes,
    *,
    reuse: Reuse,
    resume_wait_ms: int,
    parent_is_live: bool,
) -> LookupQuery:
    """The lookup of a request's whole row."""
    parent = None if parent_is_live else request.submit.parent_key
    return LookupQuery(
        root=chain.root,
        block_keys=tuple(chain.block_keys),
        tokens=packed,
        prompt_key=chain.key(),
        reuse=reuse,
        parent_key=parent,
        wait_ms=resume_wait_ms if parent is not None else 0,
        cautious=request.submit.attempt > 0,
    )
