"""What this model has said: sha256 of a reply's text → the ids it was generated as. Bounded, and kept in a file for the next life.

Why: a reply that comes back as a message of the next turn would be tokenised anew, and often into other ids than the sampler
chose (`" hel" "lo"` against `" hello"`). Then the cached row of the conversation ends where the reply begins. With the ids of
the time the row goes on to its last token.

    file      sha256 of what the ids mean (the model's fingerprint), then records
    record    sha256 of the text (32 bytes), number of ids (u32le), ids (u32le each)

A torn record at the end (a crash while writing) ends the reading; a file of another model is begun anew. Background and service
thread both use the table: one lock.
"""

import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from erllama_host.protocol.inference import pack_tokens, unpack_tokens

MAX_TOKENS = 1 << 18
"""Of all replies together: 1 MiB of ids."""
_COUNT = struct.Struct("<I")
_DIGEST_BYTES = 32


class ReplayTable:
    """Replies by their text; the least recently used are forgotten first."""

    def __init__(self, path: Path | None, identity: bytes, max_tokens: int = MAX_TOKENS) -> None:
        """
        Args:
            path: file to keep them in; None keeps them in memory only.
            identity: names the model whose ids these are.
        """
        self._path = path
        self._header = hashlib.sha256(b"replies 1 " + identity).digest()
        self._max_tokens = max_tokens
        self._replies: OrderedDict[bytes, bytes] = OrderedDict()
        self._num_tokens = 0
        self._lock = threading.Lock()
        self._fd: int | None = None
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
            if self._fd is not None and not known:
                os.write(self._fd, key + _COUNT.pack(len(ids)) + packed)

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

    def _open(self, path: Path) -> None:
        """Read what is there, and write it back without what was replaced: the file grows by one life at most."""
        for key, packed in self._read(path):
            self._add(key, packed)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        records = [key + _COUNT.pack(len(packed) // 4) + packed for key, packed in self._replies.items()]
        temporary.write_bytes(self._header + b"".join(records))
        temporary.chmod(0o600)
        temporary.replace(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _read(self, path: Path) -> list[tuple[bytes, bytes]]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        records: list[tuple[bytes, bytes]] = []
        at = _DIGEST_BYTES if data.startswith(self._header) else len(data)
        while at + _DIGEST_BYTES + _COUNT.size <= len(data):
            ids_at = at + _DIGEST_BYTES + _COUNT.size
            end = ids_at + 4 * _COUNT.unpack_from(data, ids_at - _COUNT.size)[0]
            if end > len(data):
                break
            records.append((data[at : at + _DIGEST_BYTES], data[ids_at:end]))
            at = end
        return records


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
