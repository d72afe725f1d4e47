"""Fingerprint of a model file, and the small files that spare a respawn from finding out again. Runs before the model is ready.

    fingerprints.json   path, inode, size, mtime → sha256 of the whole file
    self-checks.json    namespace (model and context) → the mode its self-check found

Both are only memories: junk in them, or none, costs time and nothing else, nor does a full disk. Writers replace them atomically.
"""

import errno
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ConfigError, ModelLoadFailed
from workers.backend.values import KvMode, SelfCheck

_CHUNK_BYTES = 1 << 20
_NUM_SAMPLES = 64
_MAX_REMEMBERED = 512
_SPLIT_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>(?!00000)\d{5})\.gguf")


def model_fingerprint(config: ModelConfig, home: Path | None) -> bytes:
    """32 bytes that name the model file, as `config.fingerprint_mode` says.

    `safe` is the file's sha256, `gguf_chunked` that of its size, its first MiB (header and vocabulary) and samples of the rest,
    `fast_unsafe` whatever the caller claims. Of a model in several files it is the sha256 of theirs: the first alone may be no
    more than a header. The stub has no file: what shapes its answers names it.

    Raises:
        ConfigError: `fast_unsafe` without 64 hex digits. ModelLoadFailed: the file cannot be read.
    """
    if config.backend == "stub":
        return hashlib.sha256(
            f"stub {config.path} {config.stub.salt} {config.stub.emit} {config.stub.kind}".encode()
        ).digest()
    if config.fingerprint_mode == "fast_unsafe":
        return _claimed(config.fingerprint)
    digests = []
    for path in model_files(Path(config.path)):
        try:
            digests.append(
                _sampled_digest(path) if config.fingerprint_mode == "gguf_chunked" else _remembered_digest(path, home)
            )
        except OSError as error:
            raise ModelLoadFailed(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def model_files(path: Path) -> list[Path]:
    """The files of a model, by the name of one of them: llama.cpp loads `…-00001-of-00003.gguf` with the other two."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], match["count"]
    return [path.with_name(f"{stem}-{number:05}-of-{count}.gguf") for number in range(1, int(count) + 1)]


def _claimed(text: str | None) -> bytes:
    try:
        claimed = bytes.fromhex(text or "")
    except ValueError:
        claimed = b""
    if len(claimed) != 32:
        raise ConfigError("fingerprint must be 64 hex digits with fingerprint_mode fast_unsafe", key="fingerprint")
    return claimed


def _sampled_digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for index in range(_NUM_SAMPLES):
            file.seek(max(0, size - _CHUNK_BYTES) * index // (_NUM_SAMPLES - 1))
            digest.update(file.read(_CHUNK_BYTES))
    return digest.digest()


def _remembered_digest(path: Path, home: Path | None) -> bytes:
    status = path.stat()
    name = f"{os.path.realpath(path)}|{status.st_ino}|{status.st_size}|{status.st_mtime_ns}"
    memory = _Memory(home, "fingerprints.json")
    known = memory.get(name)
    if isinstance(known, str) and len(known) == 64:
        return bytes.fromhex(known)
    digest = file_sha256(path)
    memory.put(name, digest.hex())
    return digest


def file_sha256(path: Path) -> bytes:
    """sha256 of a file's content. Releases the GIL while hashing.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe or a device may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def remembered_mode(home: Path | None, root: bytes) -> KvMode | None:
    """What an earlier self-check of this namespace found; None if there was none."""
    value = _Memory(home, "self-checks.json").get(root.hex())
    return KvMode(value) if value in (KvMode.SEGMENTS.value, KvMode.SNAPSHOTS.value) else None


def remember_mode(home: Path | None, root: bytes, verdict: SelfCheck) -> None:
    """Keep a verdict for the next life. UNCACHED is not kept: what failed is tried again."""
    if verdict.mode is not KvMode.UNCACHED:
        _Memory(home, "self-checks.json").put(root.hex(), verdict.mode.value)


class _Memory:
    """A JSON object in a file; the newest `_MAX_REMEMBERED` entries are kept."""

    def __init__(self, home: Path | None, name: str) -> None:
        self._path = home / name if home is not None else None

    def get(self, key: str) -> object:
        return self._read().get(key)

    def put(self, key: str, value: str) -> None:
        if self._path is None:
            return
        entries = self._read()
        entries.pop(key, None)
        entries[key] = value
        kept = dict(list(entries.items())[-_MAX_REMEMBERED:])
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            try:
                temporary.write_text(json.dumps(kept), encoding="ascii")
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            content = json.loads(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
