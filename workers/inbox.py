"""From any thread to the service loop: a queue whose other end is a file descriptor to poll."""

import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Unbounded in itself: what is put in is bounded by its senders (credit, queue bounds). Putting never blocks."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)

    def fileno(self) -> int:
        """Readable when `drain` has something; for pollers."""
        return self._read_fd

    def put(self, item: T) -> None:
        """Add an item and wake the reader. From any thread."""
        self._items.append(item)
        self.wake()

    def wake(self) -> None:
        """Wake the reader without an item. Safe in a signal handler."""
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            pass  # the pipe is full of wake-ups already

    def drain(self) -> list[T]:
        """Everything there, in order. Reader thread only."""
        # The pipe is emptied before the queue: an item put in between leaves a byte, so the reader looks again.
        try:
            while len(os.read(self._read_fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        """Close the descriptors; nothing may be put afterwards."""
        os.close(self._read_fd)
        os.close(self._write_fd)
