"""Watching processes that asked for it: one that lives but has stopped pinging is killed, so that it is started anew.

The controller watches the daemon and the daemon watches the controller, so a stopped process (SIGSTOP, a hang) of either is not for
ever. Owner: the service loop. Time in which the daemon itself did not run does not count against anybody.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

OWN_GAP_S = 2.0
"""A longer pause between two rounds of our loop means that we were stopped, or the machine was."""


@dataclass(slots=True)
class _Watched:
    pid: int
    timeout_s: float
    last_ping_s: float


def kill(pid: int) -> None:
    """SIGKILL, if the process is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Watch:
    """Processes that must keep pinging."""

    def __init__(self, kill_process: Callable[[int], None] = kill) -> None:
        self._kill = kill_process
        self._watched: dict[bytes, _Watched] = {}
        self._last_round_s: float | None = None

    def ping(self, routing: bytes, pid: int, timeout_s: float, now: float) -> None:
        """A sign of life. `pid` 0 ends the watching."""
        if pid:
            self._watched[routing] = _Watched(pid, timeout_s, now)
        else:
            self._watched.pop(routing, None)

    def round(self, now: float, alive: Callable[[int], bool]) -> list[int]:
        """Kill what has been silent for too long. Returns their pids; the dead are forgotten."""
        if self._last_round_s is not None and now - self._last_round_s > OWN_GAP_S:
            for watched in self._watched.values():
                watched.last_ping_s = now
        self._last_round_s = now
        killed = []
        for routing, watched in list(self._watched.items()):
            if now - watched.last_ping_s <= watched.timeout_s:
                continue
            del self._watched[routing]
            if alive(watched.pid):
                self._kill(watched.pid)
                killed.append(watched.pid)
        return killed
