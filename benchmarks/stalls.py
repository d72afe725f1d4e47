"""What one stream notices of another conversation's cache work: its longest gap while 2 048 tokens are restored, or saved.

The model saves nothing while it prefills here (`cold_max_tokens`), so that all segments of a row are packed at its end, beside the
stream: the worst case, and apart from the prefill. Tokens are not coalesced, so a gap is that of two decodes.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.arithmetic import median
from benchmarks.figures import Figure
from benchmarks.host import BenchmarkHost, HostModel, benchmark_host
from benchmarks.setting import Setting
from benchmarks.systems import Timing

PART = "stalls"
ROW_TOKENS = 2048
STREAM_PROMPT_TOKENS = 32
STREAM_TOKENS = 160
LEAD_S = 0.6
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
    with benchmark_host() as host:
        model = host.load(setting.model, "tiny", **OPTIONS)
        for index in range(setting.repeats(3)):
            setting.say(f"round {index + 1}")
            row = setting.corpus.prompt(900 + index, ROW_TOKENS)
            gap_ms, usual_ms = _beside(setting, model, index, partial(_save, model, row))
            saving.append(gap_ms)
            _restarted(host)
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
    streams: list[Timing] = []

    def listen() -> None:
        streams.append(model.stream(setting.corpus.prompt(950 + salt, STREAM_PROMPT_TOKENS), STREAM_TOKENS))

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(LEAD_S)
    began = time.perf_counter()
    start, end = act()
    thread.join()
    pairs = list(itertools.pairwise(streams[0].moments_s()))
    within = [(later - earlier) * 1e3 for earlier, later in pairs if later > start and earlier < end]
    before = [(later - earlier) * 1e3 for earlier, later in pairs if later < began]
    return max(within), median(before)


def _restarted(host: BenchmarkHost) -> None:
    """A new worker: nothing is live any more."""
    host.client.restart("tiny")
