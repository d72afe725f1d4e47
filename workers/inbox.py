"""From any thread to the service loop: a queue whose other end is a file descriptor to poll."""

from collections import deque
from typing import Generic, TypeVar

from erllama_host.transport.wakeup import Wakeup

T = TypeVar("T")


class Inbox(Generic[T]):
    """Unbounded in itself: what is put in is bounded by its senders (credit, queue bounds). Putting never blocks."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._wakeup = Wakeup()

    def fileno(self) -> int:
        """Readable when `drain` has something; for pollers."""
        return self._wakeup.fd

    def put(self, item: T) -> None:
        """Add an item and wake the reader. From any thread."""
        self._items.append(item)
        self._wakeup.set()

    def wake(self) -> None:
        """Wake the reader without an item. Safe in a signal handler."""
        self._wakeup.set()

    def drain(self) -> list[T]:
        """Everything there, in order. Reader thread only."""
        # Before the queue: an item put in between wakes the reader once more.
        self._wakeup.clear()
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        """Close the descriptors; nothing may be put afterwards."""
        self._wakeup.close()
