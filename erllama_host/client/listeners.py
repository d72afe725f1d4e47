"""Who listens to an exchange when its caller waits for the result as a whole. On the loop's thread; see `Listener`."""

from collections.abc import Callable
from typing import Any

from erllama_host.client.results import Piece, StreamEnd, Transcript
from erllama_host.errors import ErllamaError

Settle = Callable[[Any, ErllamaError | None], None]
"""Called once: with a result, or with an error."""


class CallListener:
    """Waits for the answer to a call; progress goes to `on_progress`."""

    def __init__(self, settle: Settle, on_progress: Callable[[Any], None] | None = None) -> None:
        self._settle = settle
        self._on_progress = on_progress

    def deliver(self, pieces: tuple[Piece, ...]) -> None:
        """Calls have no pieces."""

    def notify(self, event: Any) -> None:
        """Progress."""
        if self._on_progress is not None:
            self._on_progress(event)

    def end(self, result: Any) -> None:
        """The reply."""
        self._settle(result, None)

    def fail(self, error: ErllamaError) -> None:
        """The error."""
        self._settle(None, error)


class Collector(CallListener):
    """Collects a stream into a `Completion`; reads as fast as it comes, so that credit never runs out."""

    def __init__(self, settle: Settle, on_read: Callable[[int], None]) -> None:
        super().__init__(settle)
        self._transcript = Transcript()
        self._on_read = on_read

    def deliver(self, pieces: tuple[Piece, ...]) -> None:
        """Take and read."""
        self._on_read(self._transcript.add(pieces))

    def end(self, result: StreamEnd) -> None:
        """All of it."""
        super().end(self._transcript.completion(result))
