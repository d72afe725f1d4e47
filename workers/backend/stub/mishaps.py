"""What a stub does to its process on request: waits, crashes, hangs. Real ones: a supervisor must not see a
difference.
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import NoReturn

from erllama_host.config.model import StubConfig
from erllama_host.errors import ModelLoadFailed
from workers.backend.base import Progress

_LOAD_STEPS = 10


class Mishaps:
    """Carries out a `StubConfig`. Used by the engine thread; `abort` may come from any."""

    def __init__(self, config: StubConfig) -> None:
        self._config = config
        self._aborted = threading.Event()
        self._num_sampled = 0
        self._crash_text = config.crash_on_text.encode() if config.crash_on_text else None

    def load(self, on_progress: Progress) -> None:
        """Take the configured time, and end as configured.

        Raises:
            ModelLoadFailed: when the configuration wants that.
        """
        for step in range(_LOAD_STEPS):
            on_progress(step / _LOAD_STEPS, "weights")
            time.sleep(self._config.load_ms / 1e3 / _LOAD_STEPS)
        if self._config.hang_in_load:
            _hang()
        if self._config.fail_load is not None:
            raise ModelLoadFailed(self._config.fail_load)

    def count_sample(self) -> None:
        """A token has been sampled."""
        self._num_sampled += 1

    def before_decode(self, text: bytes) -> None:
        """Crash or hang if it is time; `text` is what the rows about to be decoded spell."""
        config = self._config
        if config.crash_after_tokens is not None and self._num_sampled >= config.crash_after_tokens:
            self._crash()
        if self._crash_text is not None and self._crash_text in text:
            self._crash()
        if config.hang_after_tokens is not None and self._num_sampled >= config.hang_after_tokens:
            _hang()

    def compute(self, num_rows: int, num_outputs: int) -> bool:
        """Take the time that the rows cost. False when aborted; an abort stops one decode."""
        prefill = num_rows - num_outputs
        cost_s = (prefill * self._config.prefill_ms_per_token + (self._config.token_ms if num_outputs else 0)) / 1e3
        aborted = self._aborted.wait(cost_s) if cost_s else self._aborted.is_set()
        if aborted:
            self._aborted.clear()
        return not aborted

    def abort(self) -> None:
        self._aborted.set()

    def clear_abort(self) -> None:
        self._aborted.clear()

    def _crash(self) -> None:
        """Die without a chance to clean up; with `crash_once`, only in the first life that gets here."""
        if self._config.crash_once is not None:
            try:
                Path(self._config.crash_once).touch(exist_ok=False)
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)
        _hang()


def _hang() -> NoReturn:
    """Make no progress for ever, deaf to everything but SIGKILL; other threads go on."""
    while True:
        time.sleep(3600)
