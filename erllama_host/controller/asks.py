"""Questions that the controller itself puts to workers and to the cache daemon, and their answers."""

import asyncio
from collections.abc import Callable

from erllama_host.errors import ErllamaError, HostUnavailable, Timeout, WorkerDied, from_wire
from erllama_host.ids import new_ref
from erllama_host.protocol import decode_body
from erllama_host.protocol.inference import ErrorBody


class Asks:
    """Open questions by ref. Owner: the controller's loop."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, asyncio.Future[tuple[str, bytes]]]] = {}

    async def ask(self, send: Callable[[str], bool], timeout_s: float, what: str, group: str = "") -> bytes:
        """Put a question and wait: the body of the `reply`.

        Args:
            send: sends it under the ref it is given; False when that is impossible.
            group: for `give_up`.

        Raises:
            HostUnavailable: it could not be sent. Timeout: no answer in time. ErllamaError: the peer answered with that error.
        """
        ref = new_ref()
        future: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()
        self._open[ref] = (group, future)
        try:
            if not send(ref):
                raise HostUnavailable(f"{what}: the process is not connected")
            kind, body = await asyncio.wait_for(future, timeout_s)
        except TimeoutError as error:
            raise Timeout(f"{what}: no answer within {timeout_s:g} s") from error
        finally:
            self._open.pop(ref, None)
        if kind == "error":
            raise _error(body)
        return body

    def answered(self, ref: str, kind: str, body: bytes) -> None:
        """A message for an open question; late ones are ignored."""
        _, future = self._open.get(ref, ("", None))
        if future is not None and not future.done() and kind in ("reply", "error"):
            future.set_result((kind, body))

    def give_up(self, group: str = "", error: ErllamaError | None = None) -> None:
        """Nobody will answer the questions of `group` any more: whoever waits gets `error`, by default WorkerDied."""
        for asked, future in list(self._open.values()):
            if asked == group and not future.done():
                future.set_exception(error or WorkerDied(f"{group}: ended before it answered"))


def _error(body: bytes) -> ErllamaError:
    told = decode_body("error", body, ErrorBody)
    return from_wire(told.code, told.message, told.details)
