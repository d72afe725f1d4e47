"""Judges by a file's time stamp whether a process still lives; fair on a machine so busy that the judge was late itself."""

from pathlib import Path

LATE_S = 3.0
"""A look this long after the last one means that the judge has been stopped or starved, and the defendant perhaps too."""


class BeatWatch:
    """Watches one beat file (notes.py): its content is the pid, its changes are the beats."""

    def __init__(self, file: Path, timeout_s: float, now: float) -> None:
        self._file = file
        self._timeout_s = timeout_s
        self._seen: tuple[str, int] | None = None
        self._changed_at = now
        self._looked_at = now

    def is_overdue(self, pid: int, now: float) -> bool:
        """Whether process `pid`, which has beaten before, has not for `timeout_s`. `now`: monotonic seconds.

        Time that passed between two far-apart looks counts for nothing.
        """
        if now - self._looked_at > LATE_S:
            self._changed_at += now - self._looked_at
        self._looked_at = now
        beat = self._read()
        if beat != self._seen:
            self._seen, self._changed_at = beat, now
        return beat is not None and beat[0] == str(pid) and now - self._changed_at > self._timeout_s

    def _read(self) -> tuple[str, int] | None:
        try:
            return self._file.read_text(encoding="ascii").strip(), self._file.stat().st_mtime_ns
        except OSError:
            return None
