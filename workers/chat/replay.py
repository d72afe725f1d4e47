"""What this model has said: sha256 of a reply's text → the ids it was generated as. Bounded, and kept in a file for the next life.

Why: a reply that comes back as a message of the next turn would be tokenised anew, and often into other ids than the sampler
chose (`" hel" "lo"` against `" hello"`). Then the cached row of the conversation ends where the reply begins. With the ids of
the time the row goes on to its last token.

    file      sha256 of what the ids mean (the model's fingerprint), then records
    record    sha256 of the text (32 bytes), number of ids (u32le), ids (u32le each)

A torn record at the end (a crash while writing) ends the reading; a file of another model is begun anew. The file is only a
memory: one that cannot be read or written is done without. Background and service thread both use the table: one lock.
"""

import errno
import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from erllama_host.observability import Log
from erllama_host.protocol.inference import pack_tokens, unpack_tokens

MAX_TOKENS = 1 << 18
"""Of all replies together: 1 MiB of ids."""
SLACK_BYTES = 256 << 10
"""Beyond twice the size of what is remembered, what the file may hold before it is written anew."""
_COUNT = struct.Struct("<I")
_DIGEST_BYTES = 32
_HEAD_BYTES = _DIGEST_BYTES + _COUNT.size


class ReplayTable:
    """Replies by their text; the least recently used are forgotten first."""

    def __init__(
        self, path: Path | None, identity: bytes, max_tokens: int = MAX_TOKENS, log: Log | None = None
    ) -> None:
        """
        Args:
            path: file to keep them in; None keeps them in memory only.
            identity: names the model whose ids these are.
        """
        self._path = path
        self._header = hashlib.sha256(b"replies 1 " + identity).digest()
        self._max_tokens = max_tokens
        self._log = log or Log("worker")
        self._replies: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_tokens = 0
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._file_bytes = 0
        if path is not None:
            self._open(path)

    def __len__(self) -> int:
        return len(self._replies)

    def remember(self, text: str, ids: Sequence[int]) -> None:
        """Keep a reply."""
        key, packed = _key(text), pack_tokens(ids)
        if not ids or len(ids) > self._max_tokens:
            return
        with self._lock:
            known = self._replies.get(key) == packed
            self._add(key, packed)
            if not known:
                self._append(_record(key, packed))

    def find(self, text: str) -> list[int] | None:
        """The ids of a reply that had exactly this text."""
        with self._lock:
            packed = self._replies.get(_key(text))
            if packed is None:
                return None
            self._replies.move_to_end(_key(text))
        return unpack_tokens(packed)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _add(self, key: bytes, packed: bytes) -> None:
        old = self._replies.pop(key, b"")
        self._replies[key] = packed
        self._num_tokens += (len(packed) - len(old)) // 4
        while self._num_tokens > self._max_tokens:
            _, dropped = self._replies.popitem(last=False)
            self._num_tokens -= len(dropped) // 4

    # ---- the file ------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> None:
        try:
            for key, packed in self._read(path):
                self._add(key, packed)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write_anew(path)
        except OSError as error:
            self._do_without(error)

    def _append(self, record: bytes) -> None:
        if self._path is None or self._fd is None:
            return
        try:
            if os.write(self._fd, record) < len(record):
                raise OSError(errno.ENOSPC, "a record was cut")  # whatever followed it could not be read
            self._file_bytes += len(record)
            needed = 4 * self._num_tokens + _HEAD_BYTES * len(self._replies)
            if self._file_bytes > 2 * needed + SLACK_BYTES:
                self._write_anew(self._path)
        except OSError as error:
            self._do_without(error)

    def _write_anew(self, path: Path) -> None:
        """Replace the file by what is remembered, without what has been replaced or forgotten since."""
        content = b"".join([self._header, *self._records()])
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.chmod(0o600)
        temporary.replace(path)
        self.close()
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._file_bytes = len(content)

    def _records(self) -> list[bytes]:
        return [_record(key, packed) for key, packed in self._replies.items()]

    def _do_without(self, error: OSError) -> None:
        self._log.warning("replies_not_kept", path=str(self._path), why=str(error))
        self.close()

    def _read(self, path: Path) -> list[tuple[bytes, bytes]]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        records: list[tuple[bytes, bytes]] = []
        at = _DIGEST_BYTES if data.startswith(self._header) else len(data)
        while at + _HEAD_BYTES <= len(data):
            ids_at = at + _HEAD_BYTES
            end = ids_at + 4 * _COUNT.unpack_from(data, ids_at - _COUNT.size)[0]
            if end > len(data):
                break
            records.append((data[at : at + _DIGEST_BYTES], data[ids_at:end]))
            at = end
        return records


def _record(key: bytes, packed: bytes) -> bytes:
    return key + _COUNT.pack(len(packed) // 4) + packed


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
