"""The small parent that `erllama up` leaves behind: it holds the host's lock and starts a circusd that died again.

circusd ended in order (exit code 0): the parent ends too, with 1 if that was because circusd gave up. It was killed or crashed: its
children have been told by the kernel to leave (process.py) and, since the parent is their subreaper, are its children now; a new
circusd starts at once, and whoever of the old ones has not left in time is killed. On SIGTERM the parent hands the signal on
until circusd is gone: one sent while circusd is just starting may be lost.
"""

import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from erllama_host.config import Paths
from erllama_host.observability import Log
from erllama_host.supervisor.intensity import History, Limits

_PR_SET_CHILD_SUBREAPER = 36
CIRCUSD_LIMITS = Limits(max_restarts=20, within_s=60.0)
ORPHANS_MAY_TAKE_S = 45.0
TICK_S = 1.0
HERE = Path(__file__).parent


class Parent:
    """One life of the parent; owner of circusd's pid."""

    def __init__(self, paths: Paths, log: Log) -> None:
        self._paths = paths
        self._log = log
        self._history = History(CIRCUSD_LIMITS)
        self._circusd = 0
        self._stopping = False
        self._orphans: list[psutil.Process] = []
        self._orphans_until = 0.0
        self._wake_up, self._woken = socket.socketpair()

    def run(self) -> int:
        """Keep circusd alive until it ends in order or is given up; returns the exit code of the parent."""
        self._listen()
        _become_subreaper()
        self._start_circusd()
        selector = selectors.DefaultSelector()
        selector.register(self._woken, selectors.EVENT_READ)
        while True:
            if selector.select(TICK_S):
                self._woken.recv(4096)
            code = self._reap()
            if code is not None:
                if self._stopping or code == 0:
                    return int(self._gave_up())
                if not self._start_again(code):
                    return 1
            if self._stopping:
                os.kill(self._circusd, signal.SIGTERM)
            self._kill_late_orphans()

    def _listen(self) -> None:
        """Signals only wake the loop; SIGTERM and SIGINT also ask for the end."""
        for end in (self._wake_up, self._woken):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_up.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._on_stop)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _start_circusd(self) -> None:
        command = [sys.executable, "-m", "circus.circusd"]
        command += ["--logger-config", str(HERE / "circusd-logging.ini"), str(HERE / "circus.ini")]
        (self._paths.run / "circusd.pid").unlink(missing_ok=True)
        (self._paths.run / "gave_up").unlink(missing_ok=True)
        self._circusd = os.posix_spawn(sys.executable, command, os.environ)
        self._log.info("circusd_started", circusd=self._circusd)

    def _reap(self) -> int | None:
        """Wait for every child that has ended, orphans too; the exit code of circusd (-N for signal N) when it is among them."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return code
            if not pid:
                return code
            if pid == self._circusd:
                code = os.waitstatus_to_exitcode(status)

    def _gave_up(self) -> bool:
        """Whether circusd ended because the cache daemon or the controller cannot be kept alive (hooks.py)."""
        note = self._paths.run / "gave_up"
        if note.exists():
            self._log.error("gave_up", reason=note.read_text(encoding="utf-8").strip())
        return note.exists()

    def _start_again(self, code: int) -> bool:
        """Start a circusd after one that crashed; False when that has happened too often."""
        verdict = self._history.ended(time.monotonic(), code, ready=True)
        self._log.error("circusd_died", exit_code=code, respawn=verdict.respawn, reason=verdict.reason)
        self._orphans = psutil.Process().children(recursive=True)
        self._orphans_until = time.monotonic() + ORPHANS_MAY_TAKE_S
        if not verdict.respawn:
            return False
        time.sleep(verdict.delay_s)
        self._start_circusd()
        return True

    def _kill_late_orphans(self) -> None:
        if self._orphans and time.monotonic() >= self._orphans_until:
            for orphan in self._orphans:
                if orphan.is_running():
                    self._log.warning("orphan_killed", orphan=orphan.pid)
                    orphan.kill()
            self._orphans = []


def _become_subreaper() -> None:
    """Orphans of a dead circusd become our children (Linux); elsewhere they are init's, and leave on their own."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
