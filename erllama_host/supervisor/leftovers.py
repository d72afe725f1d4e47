"""What a host leaves in shared places, and its removal once it has ended in order or is known to be dead."""

import os
import shutil
import tempfile
from pathlib import Path

from erllama_host.config import Paths, load_config
from erllama_host.errors import ConfigError

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


def clean_run_directory(run: Path) -> None:
    """Remove sockets, pid files and notes of a host that does not run any more; the directory itself stays."""
    for path in run.glob("*.sock"):
        path.unlink(missing_ok=True)
    for name in ("circusd.pid", "host.pid", "controller.beat", "controller.lock", "cache.lock", "gave_up"):
        (run / name).unlink(missing_ok=True)
    for name in ("models", "exits", "ready"):
        shutil.rmtree(run / name, ignore_errors=True)
