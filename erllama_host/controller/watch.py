"""Noticing that a process has died (pidfd) or stopped living (heartbeats)."""

import asyncio
import os
import signal
from collections.abc import Callable

import psutil

POLL_S = 0.5
LATE_S = 3.0


class ProcessWatch:
    """One process: calls `on_death(pid)` once it has ended; can kill exactly it, never a later owner of its pid.

    Linux gives a file descriptor that becomes readable at its death; elsewhere it is looked at every POLL_S.
    """

    def __init__(self, pid: int, on_death: Callable[[int], None]) -> None:
        self.pid = pid
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._process: psutil.Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        try:
            if hasattr(os, "pidfd_open"):
                self._fd = os.pidfd_open(pid)
                self._loop.add_reader(self._fd, self._died)
            else:
                self._process = psutil.Process(pid)
                self._timer = self._loop.call_later(POLL_S, self._poll)
        except (ProcessLookupError, psutil.NoSuchProcess):
            self._timer = self._loop.call_later(0, self._died)

    def kill(self) -> None:
        """SIGKILL."""
        try:
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            elif self._process is not None:
                self._process.kill()
        except (ProcessLookupError, psutil.NoSuchProcess):
            return

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()

    def _poll(self) -> None:
        if self._process is not None and self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            self._timer = self._loop.call_later(POLL_S, self._poll)
        else:
            self._died()

    def _died(self) -> None:
        self.close()
        self._on_death(self.pid)


class Heartbeats:
    """Who has not been heard of for too long. Pure; times are monotonic seconds.

    Looks are meant to be about a second apart. Time between two looks that are much further apart does not count: then this
    process was stopped or starved itself, and has not read what the others sent.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._heard: dict[str, float] = {}
        self._looked_at: float | None = None

    def heard(self, name: str, now: float) -> None:
        """A sign of life of `name`, who is watched from now on."""
        self._heard[name] = now

    def forget(self, name: str) -> None:
        """Do not watch `name` any more."""
        self._heard.pop(name, None)

    def overdue(self, now: float) -> list[str]:
        """Look: everybody whose last sign of life is too old."""
        if self._looked_at is not None and now - self._looked_at > LATE_S:
            lost_s = now - self._looked_at
            self._heard = {name: at + lost_s for name, at in self._heard.items()}
        self._looked_at = now
        return [name for name, at in self._heard.items() if now - at > self._timeout_s]
