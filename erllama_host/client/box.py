"""How a thread waits for a result of the loop's thread. Without asyncio, which is only imported when a client connects."""

from queue import SimpleQueue
from typing import Any

STOPPED = "this Client is closed, or was made before a fork; make a new one"


class Box:
    """A result that one thread waits for and another one puts in."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def settle(self, result: Any, error: Exception | None) -> None:
        """Put the result in. Never blocks."""
        self._queue.put((result, error))

    def wait(self) -> Any:
        """The result; raises the error. Ctrl-C gets through."""
        result, error = self._queue.get()
        if error is not None:
            raise error
        return result
