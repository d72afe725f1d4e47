"""`python -m erllama_host.supervisor [--detach]`: the small parent. Started by `start_host`, never by hand.

A pipe whose number is in ERLLAMA_START_FD stays open while the parent lives: it tells `start_host` that the host's lock is ours, or
why it is not, and by its end of a failure.
"""

import os
import sys

from erllama_host.config import Paths, find_paths
from erllama_host.observability import Log
from erllama_host.process import die_with_parent
from erllama_host.supervisor.environment import LOCKED, START_FD
from erllama_host.supervisor.leftovers import clean_run_directory
from erllama_host.supervisor.parent import Parent
from erllama_host.supervisor.state import PARENT_FILE, hold, host_state


def main() -> int:
    """Returns the exit code."""
    os.umask(0o077)
    report = int(os.environ.pop(START_FD))
    os.set_inheritable(report, False)
    if "--detach" in sys.argv:
        if os.fork():
            os._exit(0)
    else:
        die_with_parent()
    paths = find_paths()
    lock = hold(paths.run / PARENT_FILE)
    refusal = _refusal(paths, lock is not None)
    if refusal:
        os.write(report, refusal.encode())
        return 1
    os.write(report, LOCKED)
    code = Parent(paths, Log("supervisor")).run()
    clean_run_directory(paths.run)
    return code


def _refusal(paths: Paths, have_lock: bool) -> str:
    state = host_state(paths)
    pid = state.circusd_pid if have_lock else state.pid
    return f"a host is already running in {paths.run} (pid {pid})" if pid or not have_lock else ""


if __name__ == "__main__":
    sys.exit(main())
