"""Logs of models that are no more: the latest are kept for whoever asks what happened, the others are removed.

Ids are made up without end (`erllama run FILE` takes a new one each time), and each leaves a file with its rotations.
"""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

MAX_KEPT = 50
_LOG = re.compile(r"model-(?P<model_id>.+)\.log(\.\d+)?\Z")
"""As `specs.log_file` names them, and circus their rotations."""


def remove_old_logs(folder: Path, models: Collection[str], max_kept: int = MAX_KEPT) -> None:
    """Keep the logs of `models` and of the `max_kept` others that were written to last.

    Raises:
        OSError: a file cannot be removed.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for path in folder.iterdir():
        match = _LOG.match(path.name)
        if match is not None and match["model_id"] not in models:
            files[match["model_id"]].append(path)
    oldest_first = sorted(files.values(), key=lambda paths: max(path.stat().st_mtime_ns for path in paths))
    for paths in oldest_first[: max(0, len(oldest_first) - max_kept)]:
        for path in paths:
            path.unlink(missing_ok=True)
