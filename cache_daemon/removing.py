"""Removing files. What cannot be removed is a line in the log and not the end of the daemon: a failed disk becomes read-only."""

from pathlib import Path


def remove(path: str) -> str | None:
    """Remove a file, which may be gone already. Returns why it is still there; None when it is not."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None
