"""Judging greedy text of a real model: teacher-forced, since other batch shapes change the last bits of logits in llama.cpp."""

from collections.abc import Iterable
from pathlib import Path

from tests.support.backends import open_gguf_backend, rows_of
from workers.backend.base import DecodeStatus


def worst_margins(path: Path, answers: Iterable[tuple[list[int], list[int]]], n_ctx: int = 1024) -> list[float]:
    """For every (prompt, answer): how far any token of the answer is below the likeliest one at its place, at most."""
    backend = open_gguf_backend(path, n_ctx=n_ctx, n_batch=n_ctx)
    try:
        return [_worst_margin(backend, prompt, answer) for prompt, answer in answers]
    finally:
        backend.close()


def _worst_margin(backend, prompt: list[int], answer: list[int]) -> float:
    backend.clear(0)
    assert backend.decode(rows_of((0, 0, prompt))) is DecodeStatus.OK
    worst, logits = 0.0, backend.logits(len(prompt) - 1)
    for position, token in enumerate(answer, start=len(prompt)):
        worst = max(worst, float(logits.max() - logits[token]))
        assert backend.decode(rows_of((0, position, [token]))) is DecodeStatus.OK
        logits = backend.logits(0)
    return worst
