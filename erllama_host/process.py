"""What every process of the host does first: die with its parent, and leave with a code that says why. Linux first."""

import ctypes
import enum
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ExitCode(enum.IntEnum):
    """Exit codes of our processes; the supervisor's hooks read them."""

    CLEAN = 0
    CRASHED = 70  # an exception nobody expected
    LOAD_FAILED = 71  # not restarted: the file will not get better
    BAD_CONFIG = 72  # not restarted
    HUNG = 73
    OUT_OF_MEMORY = 74
    FENCED = 75  # a younger incarnation serves
    ORPHANED = 76  # the parent died first


NO_RESPAWN = frozenset({ExitCode.LOAD_FAILED, ExitCode.BAD_CONFIG})


def die_with_parent(sig: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for `sig` when the parent ends, so that no child of a killed circusd survives to be a duplicate.

    The parent may have died before the request was made: then the process leaves at once (ORPHANED). A no-op where the kernel
    has no such thing.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent or parent == 1:
        _leave_if_orphaned(parent)


def _leave_if_orphaned(parent: int) -> None:
    """Leave when the parent has changed since. In a container the parent may rightly be pid 1."""
    if os.getppid() != parent:
        os._exit(ExitCode.ORPHANED)


def set_oom_score(adjust: int) -> None:
    """Make this process a likelier (positive) or unlikelier (negative) victim of the kernel's out-of-memory killer.

    Lowering needs a privilege; without it the score stays, which is no reason not to run.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(str(adjust), encoding="ascii")
    except OSError:
        return


def exists(pid: int) -> bool:
    """Whether a process with that pid runs (a zombie counts as gone)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
