"""A stream of pieces on an asyncio loop."""

import asyncio
import weakref
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from erllama_host.client.results import Completion, Piece, StreamEnd, StreamStats, Transcript
from erllama_host.errors import ErllamaError

if TYPE_CHECKING:
    from erllama_host.client.async_client import AsyncClient
    from erllama_host.client.connection import Connection


class AsyncMailbox:
    """Pieces that have come and have not been read: at most the stream's window, since credit is granted by reading."""

    def __init__(self) -> None:
        self.pieces: deque[Piece] = deque()
        self.outcome: StreamEnd | ErllamaError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until there is something to read or the stream has ended. One reader at a time."""
        if self._waiter is not None:
            raise RuntimeError("another task is reading this stream")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def deliver(self, pieces: tuple[Piece, ...]) -> None:
        """See `Listener`."""
        self.pieces.extend(pieces)
        self._wake()

    def notify(self, event: Any) -> None:
        """Streams have no progress."""

    def end(self, result: StreamEnd) -> None:
        """See `Listener`."""
        self.outcome = result
        self._wake()

    def fail(self, error: ErllamaError) -> None:
        """See `Listener`."""
        self.outcome = error
        self._wake()

    def drop(self) -> None:
        """Nobody will read what is here; whoever waits is let go."""
        self.pieces.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncStream:
    """Pieces of an answer as they become final: `async for piece in stream`.

    As a context manager it cancels the request when left early. It survives the death of the model's process: iteration just
    goes on. At the end `stats` is there; an error of the host is raised.
    """

    def __init__(self, ref: str, client: "AsyncClient", connection: "Connection", mailbox: AsyncMailbox) -> None:
        self.ref = ref
        """Identifies the request, for `cancel(ref)`."""
        self._client = client  # kept: a client that is dropped closes
        self._connection = connection
        self._mailbox = mailbox
        self._transcript = Transcript()
        self._finalizer = weakref.finalize(self, _abandon_later, connection, ref)
        self._finalizer.atexit = False

    @property
    def stats(self) -> StreamStats | None:
        """How it went; None before the end."""
        outcome = self._mailbox.outcome
        return outcome.stats if isinstance(outcome, StreamEnd) else None

    def cancel(self) -> None:
        """Ask for the end at the next token; the stream then ends with `stats.cancelled`. Fire and forget, idempotent."""
        self._connection.cancel(self.ref)

    async def aclose(self) -> None:
        """Cancel, and read no more. Idempotent."""
        self._finalizer.detach()
        self._connection.abandon(self.ref)
        self._mailbox.drop()

    async def result(self) -> Completion:
        """Read on to the end; the whole answer, with what was read before."""
        async for _ in self:
            pass
        if not isinstance(self._mailbox.outcome, StreamEnd):
            raise RuntimeError("the stream was closed before its end")
        return self._transcript.completion(self._mailbox.outcome)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        mailbox = self._mailbox
        while not mailbox.pieces:
            if isinstance(mailbox.outcome, ErllamaError):
                raise mailbox.outcome
            if mailbox.outcome is not None or not self._finalizer.alive:
                raise StopAsyncIteration
            await mailbox.wait()
        piece = mailbox.pieces.popleft()
        self._transcript.add((piece,))
        self._connection.read(self.ref, len(piece.token_ids))
        return piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _abandon_later(connection: "Connection", ref: str) -> None:
    """The stream was dropped without being closed; the garbage collector may run on any thread."""
    with suppress(RuntimeError):  # the loop is closed: the host will miss our signs of life, and cancel
        connection.loop.call_soon_threadsafe(connection.abandon, ref)
