"""Looking at files of a host that runs: whatever is listed may be gone by the time it is looked at."""

import os
from pathlib import Path

BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the filesystem's own is."""


def status_of(path: Path) -> os.stat_result | None:
    """Of the file or link itself; None when it is gone."""
    try:
        return path.lstat()
    except OSError:
        return None


def used_bytes(folder: Path) -> int:
    """What the files below `folder` take on their filesystem; 0 when it does not exist."""
    files = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(status.st_blocks * BLOCK_BYTES for status in map(status_of, files) if status is not None)
