"""Is a host running in these directories, and under which pids? Read from the files that its processes hold."""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from erllama_host.config import Paths

PARENT_FILE = "host.pid"
CIRCUSD_FILE = "circusd.pid"


@dataclass(frozen=True)
class HostState:
    """Pids are 0 where there is no such process; a host started by `circusd circus.ini` has no parent."""

    parent_pid: int = 0
    circusd_pid: int = 0

    @property
    def running(self) -> bool:
        """Whether there is anything to stop."""
        return bool(self.parent_pid or self.circusd_pid)

    @property
    def pid(self) -> int:
        """The process to name to a person, and to signal: whoever is on top."""
        return self.parent_pid or self.circusd_pid


def host_state(paths: Paths) -> HostState:
    """What runs in `paths.run`. Changes nothing; a stale pid file counts for nothing."""
    return HostState(_holder_of(paths.run / PARENT_FILE), _circusd(paths.run / CIRCUSD_FILE))


def hold(path: Path, wait_s: float = 1.0) -> IO[str] | None:
    """Take the lock file `path` for the life of this process and write our pid into it; None when somebody else has it.

    Args:
        wait_s: how long to wait for a holder that is leaving, or only looking (`host_state`).
    """
    file = lock(path, wait_s)
    if file is not None:
        file.write(str(os.getpid()))
        file.flush()
    return file


def lock(path: Path, wait_s: float = 1.0) -> IO[str] | None:
    """As `hold`, for a moment: without a name in the file, so that `host_state` takes nobody for the host."""
    give_up_at = time.monotonic() + wait_s
    while (file := _try_lock(path)) is None:
        if time.monotonic() >= give_up_at:
            return None
        time.sleep(0.02)
    file.truncate(0)
    return file


def keep_from_ageing(directory: Path) -> int:
    """Hold a shared lock on a directory for the life of this process; its descriptor.

    systemd-tmpfiles removes from the temp directory what nobody has touched for ten days: the spec of a worker that runs well. What
    somebody has locked it leaves alone, with everything below it (tmpfiles.d(5), "Age").
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _try_lock(path: Path) -> IO[str] | None:
    """The locked file. Opened anew at every try: a holder removes it when it leaves, and a lock on what is not at `path` any more
    would keep nobody out."""
    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        is_ours = False
    if is_ours:
        return file
    file.close()
    return None


def read_pid(path: Path) -> int:
    """The pid in a file; 0 when there is none."""
    try:
        return int(path.read_text(encoding="ascii") or 0)
    except (OSError, ValueError):
        return 0


def _holder_of(path: Path) -> int:
    """Pid of the process that holds the lock file; 0 when nobody does, whatever the file says."""
    try:
        with path.open(encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_pid(path)
    except OSError:
        return 0
    return 0


def _circusd(path: Path) -> int:
    """Pid in circusd's pid file, if that process is a circusd of ours: pids are used again after a crash."""
    pid = read_pid(path)
    try:
        process = psutil.Process(pid) if pid else None
        if process is not None and process.status() != psutil.STATUS_ZOMBIE:
            return pid if any("circus" in part for part in process.cmdline()) else 0
    except psutil.Error:
        return 0
    return 0
