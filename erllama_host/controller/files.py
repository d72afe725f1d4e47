"""Files that must be whole or not there: written beside, synced, renamed."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path`; after the return it survives a power cut. Blocks for as long as the disk takes.

    One at a time per path: two would share the temporary file, and rename each other's half.

    Raises:
        OSError: the disk is full, …; `path` is as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
