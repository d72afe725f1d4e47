"""A stream of pieces for threads."""

import weakref
from collections import deque
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from erllama_host.client.results import Completion, Piece, StreamEnd, StreamStats, Transcript
from erllama_host.errors import ErllamaError

if TYPE_CHECKING:
    from erllama_host.client.client import Client

_READ_CHUNK_TOKENS = 32
"""The reader tells the loop's thread what it read in chunks of so many: less than a grant of credit, more than a wake-up."""


class Mailbox:
    """From the loop's thread to the reader's: batches of pieces, then one outcome; None frees the reader of a closed stream."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[Piece, ...] | StreamEnd | ErllamaError | None] = SimpleQueue()

    def deliver(self, pieces: tuple[Piece, ...]) -> None:
        """See `Listener`."""
        self.queue.put(pieces)

    def notify(self, event: Any) -> None:
        """Streams have no progress."""

    def end(self, result: StreamEnd) -> None:
        """See `Listener`."""
        self.queue.put(result)

    def fail(self, error: ErllamaError) -> None:
        """See `Listener`."""
        self.queue.put(error)


class Stream:
    """Pieces of an answer as they become final: `for piece in stream`.

    As a context manager it cancels the request when left early, and so does dropping the last reference to it. It survives the
    death of the model's process: iteration just goes on. At the end `stats` is there; an error of the host is raised.
    For one reader; `cancel` and `close` may come from any thread.
    """

    def __init__(self, ref: str, client: "Client", mailbox: Mailbox) -> None:
        self.ref = ref
        """Identifies the request, for `cancel(ref)`."""
        self._client = client
        self._queue = mailbox.queue
        self._pieces: deque[Piece] = deque()
        self._outcome: StreamEnd | ErllamaError | None = None
        self._closed = False
        self._unreported = 0
        self._transcript = Transcript()
        self._finalizer = weakref.finalize(self, client._abandon, ref)
        self._finalizer.atexit = False

    @property
    def stats(self) -> StreamStats | None:
        """How it went; None before the end."""
        return self._outcome.stats if isinstance(self._outcome, StreamEnd) else None

    def cancel(self) -> None:
        """Ask for the end at the next token; the stream then ends with `stats.cancelled`. Fire and forget, idempotent."""
        self._client.cancel(self.ref)

    def close(self) -> None:
        """Cancel, and read no more. Idempotent."""
        self._closed = True
        self._finalizer()
        self._queue.put(None)

    def result(self) -> Completion:
        """Read on to the end; the whole answer, with what was read before."""
        for _ in self:
            pass
        if not isinstance(self._outcome, StreamEnd):
            raise RuntimeError("the stream was closed before its end")
        return self._transcript.completion(self._outcome)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        while not self._pieces and self._outcome is None and not self._closed:
            self._receive()
        if self._closed:
            raise StopIteration
        if self._pieces:
            piece = self._pieces.popleft()
            self._transcript.add((piece,))
            self._report(len(piece.token_ids))
            return piece
        if isinstance(self._outcome, ErllamaError):
            raise self._outcome
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _receive(self) -> None:
        match self._queue.get():
            case None:
                self._closed = True
            case StreamEnd() | ErllamaError() as outcome:
                self._outcome = outcome
                self._finalizer.detach()
            case pieces:
                self._pieces.extend(pieces)

    def _report(self, num_tokens: int) -> None:
        self._unreported += num_tokens
        if self._unreported >= _READ_CHUNK_TOKENS:
            self._client._read(self.ref, self._unreported)
            self._unreported = 0
