"""Files that must be whole or not there: written beside, synced, renamed."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path`; after the return it survives a power cut. Blocks for as long as the disk takes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
