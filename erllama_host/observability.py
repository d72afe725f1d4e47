"""Structured logs: one JSON object a line on stderr, which circus writes to the process's file. No state but the level.

Every line has `at` (UTC), `level`, `process`, `event`; what belongs to a request has `ref`, to a model `model`. `rate_limited`
keeps a flood of one event to a line per interval, with the count of what was left out.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes the lines of one process. Thread-safe: a line is one write(2)."""

    def __init__(self, process: str, level: str = "info", stream: TextIO | None = None) -> None:
        self._process = process
        self._threshold = LEVELS[level]
        self._stream = stream
        self._last: dict[str, tuple[float, int]] = {}

    def debug(self, event: str, **fields: Any) -> None:
        """For developers."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something an operator may want to know."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something an operator should look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something failed."""
        self._write("error", event, fields)

    def rate_limited(self, event: str, interval_s: float = 5.0, **fields: Any) -> None:
        """A warning at most once per `interval_s` and event; `suppressed` counts what was left out since."""
        now = time.monotonic()
        last, left_out = self._last.get(event, (-interval_s, 0))
        if now - last < interval_s:
            self._last[event] = (last, left_out + 1)
            return
        self._last[event] = (now, 0)
        self._write("warning", event, {**fields, "suppressed": left_out} if left_out else fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < self._threshold:
            return
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "process": self._process,
            "pid": os.getpid(),
            "event": event,
            **fields,
        }
        stream = self._stream or sys.stderr
        try:
            stream.write(json.dumps(line, default=str) + "\n")
            stream.flush()
        except BrokenPipeError:
            _write_to_nobody(stream)


def _write_to_nobody(stream: TextIO) -> None:
    """circusd, which reads what we say, has been killed: there is nobody to tell, and rows to save before we leave."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
