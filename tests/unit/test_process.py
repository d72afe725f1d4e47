"""Parent-death signal and process existence, with real processes."""

import os
import signal
import subprocess
import sys

import pytest

from erllama_host import process

_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=sys.stdout)
child.wait()
"""
_CHILD = """
import os, signal
from erllama_host.process import die_with_parent
die_with_parent(signal.SIGKILL)
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.process
def test_a_child_dies_with_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT.format(child=_CHILD)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert process.exists(child)
    child_fd = os.pidfd_open(child)
    try:
        parent.kill()
        parent.wait(timeout=30)
        ended = _wait_readable(child_fd, 30)
    finally:
        os.close(child_fd)
        parent.stdout.close()
    assert ended


def _wait_readable(fd: int, timeout_s: float) -> bool:
    import select

    return bool(select.select([fd], [], [], timeout_s)[0])


def test_a_zombie_does_not_exist() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.exists(child.pid)
    child.wait()
    assert not process.exists(child.pid)
    assert process.exists(os.getpid())


def test_exit_codes_stay_clear_of_signals_and_shells() -> None:
    values = [code.value for code in process.ExitCode if code is not process.ExitCode.CLEAN]
    assert all(64 < value < 126 for value in values)
    assert signal.SIGKILL not in values
