"""What happened, for operators: a bounded journal of events on disk, and waiting for the next one.

`$ERLLAMA_HOME/events.jsonl`, one JSON object a line. Numbers only grow, over restarts too. When the file has twice the lines it may
keep, the newer half is written anew.
"""

import asyncio
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from erllama_host.protocol.calls import Event, EventList

MAX_WAIT_MS = 30_000
MAX_ANSWER = 5000


class Journal:
    """Owner of the file; on the controller's loop."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._events: deque[Event] = deque(self._read(), maxlen=limit)
        self._num_lines = len(self._events)
        self._next = self._events[-1].seq + 1 if self._events else 1
        self._arrived = asyncio.Event()
        self._file = path.open("a", encoding="utf-8")

    def add(self, name: str, model: str = "", **fields: Any) -> Event:
        """Write down that something happened."""
        plain = json.loads(json.dumps(fields, default=str))
        event = Event(seq=self._next, at=round(time.time(), 3), name=name, model=model, fields=plain)
        self._next += 1
        self._events.append(event)
        self._file.write(msgspec.json.encode(event).decode() + "\n")
        self._file.flush()
        self._num_lines += 1
        if self._num_lines > 2 * self._limit:
            self._compact()
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

    def _read(self) -> list[Event]:
        """What the file holds; lines that were cut off by a crash are skipped."""
        if not self._path.exists():
            return []
        found = []
        for line in self._path.read_bytes().splitlines():
            try:
                found.append(msgspec.json.decode(line, type=Event))
            except msgspec.DecodeError:
                continue
        return found[-self._limit :]

    def _compact(self) -> None:
        self._file.close()
        temporary = self._path.with_name(f".{self._path.name}.new")
        lines = (msgspec.json.encode(event).decode() + "\n" for event in self._events)
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._num_lines = len(self._events)
