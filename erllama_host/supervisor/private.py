"""Hosts of our own: in a temporary directory, ended with this process, nothing left behind.

A process killed with SIGKILL cannot clean up. Its host ends by itself then (parent-death signals), but its directory and its
shared memory stay, and nobody comes back for them: whoever makes the next private host removes them. An owner is told from a dead
one by a lock on the directory, which the kernel drops with the process; pids would be used again, and mean nothing in a container.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erllama_host.config import Paths, parse_config
from erllama_host.supervisor.leftovers import remove_shared_memory
from erllama_host.supervisor.start import Progress, RunningHost, start_host
from erllama_host.supervisor.stop import stop_host

OWNED = "erl-host-"
UNOWNED = "erl-new-"
"""Before it is locked: the name under which nobody takes it for abandoned."""


@contextmanager
def private_host(*, config_text: str = "", on_progress: Progress | None = None) -> Iterator[RunningHost]:
    """Run a host in a directory of its own; stop it and remove the directory at the end.

    Args:
        config_text: its erllama.toml.
    """
    config = parse_config(config_text)
    with private_paths() as paths:
        paths.config_file.write_text(config_text, encoding="utf-8")
        host = start_host(paths, config, detach=False, on_progress=on_progress)
        try:
            yield host
        finally:
            stop_host(paths, drain_s=0.0, on_progress=on_progress)
            host.wait(5.0)


@contextmanager
def private_paths() -> Iterator[Paths]:
    """Directories for a host that ends with the block, under the temp directory; removed at the end with its shared memory.

    First removes those of processes that were killed.
    """
    temp = Path(tempfile.gettempdir())
    remove_abandoned(temp)
    unowned = Path(tempfile.mkdtemp(prefix=UNOWNED, dir=temp))
    lock = os.open(unowned, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    base = unowned.rename(temp / unowned.name.replace(UNOWNED, OWNED, 1))
    paths = _paths_in(base)
    try:
        yield paths
    finally:
        remove_shared_memory(paths)
        shutil.rmtree(base, ignore_errors=True)
        os.close(lock)


def remove_abandoned(temp: Path) -> None:
    """Remove what private hosts under `temp` left whose owners are gone: their processes, directories and shared memory."""
    for base in temp.glob(OWNED + "*"):
        try:
            lock = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or somebody removes it just now
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stop_host(_paths_in(base), now=True)
                shutil.rmtree(base, ignore_errors=True)
        except BlockingIOError:
            continue  # its owner lives
        finally:
            os.close(lock)


def _paths_in(base: Path) -> Paths:
    return Paths(home=base / "home", run=base / "run", config_file=base / "erllama.toml")
