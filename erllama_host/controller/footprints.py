"""How much memory models took when they were loaded: `$ERLLAMA_HOME/footprints.json`, for refusing loads that cannot fit.

A hint, no more: a file that cannot be read is forgotten, and a model never seen counts as large as its file.
"""

import hashlib
import json
from pathlib import Path

import msgspec

from erllama_host.config import ModelConfig
from erllama_host.controller.files import write_durably

MAX_ENTRIES = 500
_SHAPE = (
    "n_ctx",
    "n_cells",
    "n_seq_max",
    "n_batch",
    "n_ubatch",
    "n_gpu_layers",
    "type_k",
    "type_v",
    "use_mmap",
    "use_mlock",
)


class Footprints:
    """Owner of the file: the keeper, one change at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: dict[str, int] = {}
        try:
            self._bytes = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except (OSError, ValueError):
            self._bytes = {}

    def needed_bytes(self, config: ModelConfig) -> int:
        """What a load is expected to take."""
        if config.backend == "stub":
            return 0
        known = self._bytes.get(_key(config))
        return known if known is not None else _file_bytes(config)

    def remember(self, config: ModelConfig, resident_bytes: int) -> None:
        """A model of this configuration has taken so much. Blocks for the write when it is more than was known; raises OSError."""
        key = _key(config)
        if config.backend == "stub" or resident_bytes <= self._bytes.get(key, 0):
            return
        self._bytes[key] = resident_bytes
        while len(self._bytes) > MAX_ENTRIES:
            self._bytes.pop(next(iter(self._bytes)))
        write_durably(self._path, json.dumps(self._bytes, indent=1).encode())


def _key(config: ModelConfig) -> str:
    """Names the file as it is now, and all options that change the size."""
    shape = {name: getattr(config, name) for name in _SHAPE}
    try:
        status = Path(config.path).stat()
        file = (config.path, status.st_size, status.st_mtime_ns)
    except OSError:
        file = (config.path, 0, 0)
    return hashlib.sha256(json.dumps([file, shape], sort_keys=True).encode()).hexdigest()[:32]


def _file_bytes(config: ModelConfig) -> int:
    try:
        return Path(config.path).stat().st_size
    except OSError:
        return 0
