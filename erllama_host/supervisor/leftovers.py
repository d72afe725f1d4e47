"""What a host leaves in shared places, and its removal once it has ended in order or is known to be dead."""

import os
import shutil
import tempfile
from pathlib import Path

from erllama_host.config import Paths, load_config
from erllama_host.errors import ConfigError
from erllama_host.supervisor.state import PARENT_FILE, lock

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the directory the kernel gives for it


def shared_memory_directories(paths: Paths) -> list[Path]:
    """Where the tier `ram` of a host may be: its own directory under `cache.ram_path`, on tmpfs, or in the temp directory."""
    name = f"erllama-{os.geteuid()}-{paths.instance}"
    try:
        configured = load_config(paths.config_file).cache.ram_path
    except ConfigError:
        configured = None
    bases = [SHARED_MEMORY, Path(tempfile.gettempdir()), *([Path(configured)] if configured else [])]
    return [base / name for base in bases]


def remove_shared_memory(paths: Paths) -> None:
    """Remove the tier `ram` of a host. Only ever directories of that host's exact name, owned by this user."""
    for directory in shared_memory_directories(paths):
        if directory.is_dir() and not directory.is_symlink() and directory.stat().st_uid == os.geteuid():
            shutil.rmtree(directory, ignore_errors=True)


def clean_unless_running(run: Path) -> bool:
    """Remove what a host that does not run any more has left in its run directory. False, and nothing is done, while one runs.

    It is done under the host's own lock: a host that starts at this moment must not lose its sockets, nor its lock.
    """
    if not run.is_dir():
        return True
    held = lock(run / PARENT_FILE)
    if held is None:
        return False
    clean_run_directory(run)
    held.close()
    return True


def clean_run_directory(run: Path) -> None:
    """Remove sockets, pid files and notes of a host, for whoever holds its lock; the directory itself stays.

    Locks of processes that are still leaving stay, too: the next cache daemon waits for the last one by them.
    """
    for path in run.glob("*.sock"):
        path.unlink(missing_ok=True)
    for name in ("circusd.pid", "controller.beat", "gave_up"):
        (run / name).unlink(missing_ok=True)
    for name in ("models", "failed", "exits", "ready"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("controller.lock", "cache.lock"):
        held = lock(run / name, wait_s=0.0)
        if held is not None:
            (run / name).unlink()
            held.close()
    (run / PARENT_FILE).unlink(missing_ok=True)
