"""What one stream notices of another conversation's cache work: its longest gap while 2 048 tokens are restored, or saved.

The model saves nothing while it prefills here (`cold_max_tokens`), so that all segments of a row are packed at its end, beside the
stream: the worst case, and apart from the prefill. Tokens are not coalesced, so a gap is that of two decodes.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.arithmetic import median
from benchmarks.figures import Figure
from benchmarks.host import HostModel, benchmark_host
from benchmarks.setting import Setting
from benchmarks.systems import gaps_within, streaming

PART = "stalls"
MODEL_ID = "tiny"
ROW_TOKENS = 2048
STREAM_PROMPT_TOKENS = 32
STREAM_MAX_TOKENS = 2048  # it is cut off when what goes on beside it has ended
SAVE_WINDOW_S = 0.4
OPTIONS = {
    "n_ctx": 4096,
    "n_cells": 8192,
    "stream_interval_ms": 0.0,
    "policy": {"cold_max_tokens": STREAM_PROMPT_TOKENS},
}


def run(setting: Setting) -> list[Figure]:
    """Medians over rounds of each round's longest gap."""
    restoring, saving, usual = [], [], []
    rounds = setting.repeats(3)
    with benchmark_host() as host:
        model = host.load(setting.model, MODEL_ID, **OPTIONS)
        for index in range(rounds):
            setting.say(f"round {index + 1} of {rounds}")
            row = setting.corpus.prompt(900 + index, ROW_TOKENS)
            gap_ms, _usual_ms = _beside(setting, model, index, partial(_save, model, row))
            saving.append(gap_ms)
            host.client.restart(MODEL_ID)  # nothing is live any more
            gap_ms, usual_ms = _beside(setting, model, 100 + index, partial(_restore, model, row))
            restoring.append(gap_ms)
            usual.append(usual_ms)
    usual_ms = median(usual)
    what = f"a stream's longest gap while {ROW_TOKENS} tokens are"
    return [
        Figure(PART, f"{what} restored beside it", median(restoring), "ms", "its usual gap", usual_ms),
        Figure(PART, f"{what} saved beside it", median(saving), "ms", "its usual gap", usual_ms),
    ]


def _save(model: HostModel, row: Sequence[int]) -> tuple[float, float]:
    """Compute a row; the time right after its end, when its segments are packed."""
    timing = model.stream(row, 1)
    ended = timing.called_at_s + timing.total_ms / 1e3
    time.sleep(SAVE_WINDOW_S)
    return ended, ended + SAVE_WINDOW_S


def _restore(model: HostModel, row: Sequence[int]) -> tuple[float, float]:
    """Ask for a stored row; the time of the request.

    Raises:
        RuntimeError: it was not restored from the store.
    """
    timing = model.stream(row, 1)
    if timing.kind not in ("exact", "partial"):
        raise RuntimeError(f"nothing was restored: the hit was {timing.kind!r}")
    return timing.called_at_s, timing.called_at_s + timing.total_ms / 1e3


def _beside(
    setting: Setting, model: HostModel, salt: int, act: Callable[[], tuple[float, float]]
) -> tuple[float, float]:
    """Longest gap of a stream within the time that `act` returns, and the stream's median gap before it; ms."""
    prompt = setting.corpus.prompt(950 + salt, STREAM_PROMPT_TOKENS)
    with streaming(model, [prompt], STREAM_MAX_TOKENS) as streams:
        began = time.perf_counter()
        start, end = act()
    (stream,) = streams
    return max(gaps_within(stream, start, end)), median(gaps_within(stream, stream.called_at_s, began))
