"""What a host leaves in shared places, and its removal once it has ended in order or is known to be dead."""

import os
import shutil
import tempfile
from pathlib import Path

from erllama_host.config.paths import Paths

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  the directory the kernel gives for it


def shared_memory_directories(run: Path) -> list[Path]:
    """Where the tier `ram` of the host at `run` may be: its own directory on tmpfs, or in the temp directory without one."""
    instance = Paths(run, run, run).instance
    name = f"erllama-{os.geteuid()}-{instance}"
    return [base / name for base in (SHARED_MEMORY, Path(tempfile.gettempdir()))]


def remove_shared_memory(run: Path) -> None:
    """Remove the tier `ram` of the host at `run`. Only ever directories of that host's exact name, owned by this user."""
    for directory in shared_memory_directories(run):
        if directory.is_dir() and not directory.is_symlink() and directory.stat().st_uid == os.geteuid():
            shutil.rmtree(directory, ignore_errors=True)


def clean_run_directory(run: Path) -> None:
    """Remove sockets, pid files and notes of a host that does not run any more; the directory itself stays."""
    for path in run.glob("*.sock"):
        path.unlink(missing_ok=True)
    for name in ("circusd.pid", "host.pid", "controller.beat", "controller.lock", "gave_up"):
        (run / name).unlink(missing_ok=True)
    for name in ("models", "exits", "ready"):
        shutil.rmtree(run / name, ignore_errors=True)
