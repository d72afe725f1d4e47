"""What happened, for operators: a bounded journal of events on disk, and waiting for the next one.

`$ERLLAMA_HOME/events.jsonl`, one JSON object a line. Numbers only grow, over restarts too. When the file has twice the lines it may
keep, the newer half is written anew. So it is when something is wrong with the file: a line that a crash cut off, or one that a
full disk did not take. Until it does, the events are in memory; a host must not stop because it cannot tell of itself.
"""

import asyncio
import errno
import json
import os
import time
from collections import deque
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from erllama_host.observability import Log
from erllama_host.protocol.calls import Event, EventList

MAX_WAIT_MS = 30_000
MAX_ANSWER = 5000


class Journal:
    """Owner of the file; on the controller's loop."""

    def __init__(self, path: Path, limit: int, log: Log) -> None:
        """`limit`: entries kept, at least 1. Raises OSError when the file cannot be opened at all."""
        self._path = path
        self._limit = limit
        self._log = log
        data = path.read_bytes() if path.exists() else b""
        self._events: deque[Event] = deque(_events_in(data), maxlen=limit)
        self._num_lines = data.count(b"\n")
        self._is_whole = not data or data.endswith(b"\n")
        """Whether the file has every event that we have, in whole lines."""
        self._next = self._events[-1].seq + 1 if self._events else 1
        self._arrived = asyncio.Event()
        self._file = FileIO(path, "ab")

    def add(self, name: str, model: str = "", **fields: Any) -> Event:
        """Write down that something happened."""
        plain = json.loads(json.dumps(fields, default=str))
        event = Event(seq=self._next, at=round(time.time(), 3), name=name, model=model, fields=plain)
        self._next += 1
        self._events.append(event)
        self._write_down(event)
        self._arrived.set()
        self._arrived = asyncio.Event()
        return event

    def since(self, seq: int, limit: int) -> EventList:
        """Events after `seq`, the oldest first, `limit` at most."""
        found = [event for event in self._events if event.seq > seq][: max(1, min(limit, MAX_ANSWER))]
        return EventList(events=found, next=found[-1].seq if found else min(seq, self._next - 1))

    async def wait_since(self, seq: int, limit: int, wait_ms: int) -> EventList:
        """As `since`, but wait for an event when there is none, `wait_ms` at most."""
        give_up_at = asyncio.get_running_loop().time() + min(max(0, wait_ms), MAX_WAIT_MS) / 1000
        while True:
            arrived, found = self._arrived, self.since(seq, limit)
            left_s = give_up_at - asyncio.get_running_loop().time()
            if found.events or left_s <= 0:
                return found
            try:
                await asyncio.wait_for(arrived.wait(), left_s)
            except TimeoutError:
                continue

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write_down(self, event: Event) -> None:
        try:
            if self._is_whole and self._num_lines < 2 * self._limit:
                _write(self._file, _line(event))
                self._num_lines += 1
            else:
                self._write_anew()
        except OSError as error:
            self._is_whole = False
            self._log.rate_limited("journal_not_written", error=str(error), event_left_out=event.name)

    def _write_anew(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        file = FileIO(temporary, "wb")
        try:
            _write(file, b"".join(map(_line, self._events)))
            temporary.replace(self._path)
        except OSError:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file, self._num_lines, self._is_whole = file, len(self._events), True


def _events_in(data: bytes) -> list[Event]:
    """Events of the lines that can be read."""
    found = []
    for line in data.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Event))
        except ValueError:  # cut off, or not even UTF-8
            continue
    return found


def _line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def _write(file: FileIO, data: bytes) -> None:
    """All of `data`: a disk that becomes full takes a part first, without an error."""
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
