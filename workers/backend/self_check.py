"""The start-up self-check: does stored state restore exactly on this model and context?

Two pieces of 16 tokens are packed, the sequence is cleared, the pieces are restored, and one row of logits must come
out bit for bit as before. Bits may be compared here, and only here: the context is empty, so cells, extent and batch
shape are the same both times. Written against the protocol alone, so every backend runs the same check; it doubles as
warm-up.
"""

import ctypes
import time

import numpy as np

from workers.backend.base import Backend
from workers.backend.values import DecodeStatus, KvMode, Logits, ModelFacts, PieceKind, Rows, SelfCheck

PIECE_TOKENS = 16
_SEQ = 0

_Plan = list[tuple[int, int, PieceKind]]


def run_self_check(backend: Backend) -> SelfCheck:
    """Prove the mode `candidate_mode(info)` on an empty context; leaves it empty, in that mode or UNCACHED."""
    started = time.perf_counter()
    mode = candidate_mode(backend.info)
    backend.assume(mode)
    reason = (
        _failure(backend, _plan(backend.info, mode)) if backend.limits.n_ctx > 2 * PIECE_TOKENS else "n_ctx is tiny"
    )
    backend.clear(_SEQ)
    if reason:
        mode = KvMode.UNCACHED
        backend.assume(mode)
    else:
        reason = "restored logits are bit-identical"
    return SelfCheck(mode, reason, (time.perf_counter() - started) * 1e3)


def candidate_mode(info: ModelFacts) -> KvMode:
    """The mode a model of this kind should pass in."""
    return KvMode.SEGMENTS if info.can_truncate else KvMode.SNAPSHOTS


def _plan(info: ModelFacts, mode: KvMode) -> _Plan:
    half, end = PIECE_TOKENS, 2 * PIECE_TOKENS
    if mode is KvMode.SEGMENTS:
        return [(0, half, PieceKind.CELLS), (half, end, PieceKind.CELLS)]
    if info.has_cells:
        return [(0, half, PieceKind.CELLS), (half, end, PieceKind.SNAPSHOT)]
    return [(0, end, PieceKind.SNAPSHOT)]


def _failure(backend: Backend, plan: _Plan) -> str:
    """Why the check fails; empty where it passes."""
    tokens = _tokens(backend.info)
    _decode(backend, tokens[: 2 * PIECE_TOKENS], 0)
    blobs = []
    for start, end, kind in plan:
        size = backend.piece_size(_SEQ, start, end, kind)
        blob = ctypes.create_string_buffer(max(size, 1))
        if not size or backend.pack(_SEQ, start, end, kind, ctypes.addressof(blob), size) != size:
            return f"tokens [{start}, {end}) cannot be packed"
        blobs.append(blob)
    expected = _decode(backend, tokens[2 * PIECE_TOKENS :], 2 * PIECE_TOKENS)
    backend.clear(_SEQ)
    for (start, end, kind), blob in zip(plan, blobs, strict=True):
        if not backend.restore(_SEQ, start, end, kind, ctypes.addressof(blob), len(blob), end):
            return f"tokens [{start}, {end}) cannot be restored"
    restored = _decode(backend, tokens[2 * PIECE_TOKENS :], 2 * PIECE_TOKENS)
    if np.array_equal(expected, restored):
        return ""
    return f"restored logits differ by up to {float(np.abs(expected - restored).max()):.3g}"


def _tokens(info: ModelFacts) -> list[int]:
    """33 ordinary-looking ids, spread over the vocabulary."""
    return [(7 + 31 * index) % info.n_vocab for index in range(2 * PIECE_TOKENS + 1)]


def _decode(backend: Backend, tokens: list[int], start: int) -> Logits:
    step = backend.limits.max_rows
    for first in range(0, len(tokens), step):
        part = tokens[first : first + step]
        outputs = np.zeros(len(part), np.bool_)
        outputs[-1] = True
        rows = Rows(
            tokens=np.array(part, np.int32),
            positions=np.arange(start + first, start + first + len(part), dtype=np.int32),
            seqs=np.full(len(part), _SEQ, np.int32),
            outputs=outputs,
        )
        status = backend.decode(rows)
        assert status is DecodeStatus.OK, f"self-check decode in an empty context: {status}"
    return backend.logits(len(part) - 1).copy()
