"""The asyncio client of a host."""

import asyncio
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from erllama_host.client import host_calls
from erllama_host.client.async_model import AsyncModel
from erllama_host.client.async_stream import AsyncMailbox, AsyncStream
from erllama_host.client.call_state import Call
from erllama_host.client.connection import Connection
from erllama_host.client.endpoint import client_options, open_connection
from erllama_host.client.infer_options import InferRequest
from erllama_host.client.limits import Patience
from erllama_host.client.listeners import CallListener, Collector
from erllama_host.client.results import Completion
from erllama_host.errors import ErllamaError
from erllama_host.ids import check_model_id, model_of, new_ref
from erllama_host.protocol import calls as c

T = TypeVar("T")
OnProgress = Callable[[c.LoadProgress], None]


class AsyncClient:
    """A client of one host for asyncio: the methods of `Client`, to be awaited. Belongs to the loop it is first used on.

    It connects when first used, or by `async with`. A loop that stands still for 10 s makes the host think that the client is
    gone; its streams go on afterwards, at the price of a resume.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        timeout_s: float = 60.0,
        key_file: str | Path | None = None,
        server_key_file: str | Path | None = None,
        max_resumes: int = 3,
        patience: Patience | None = None,
    ) -> None:
        """See `Client`."""
        self._options = client_options(endpoint, timeout_s, key_file, server_key_file, max_resumes, patience)
        self._connection: Connection | None = None
        self._closed = False

    @property
    def endpoint(self) -> str:
        """Where the host is expected."""
        return self._options.endpoint

    @property
    def local(self) -> bool:
        """Whether the host sees the same files as this client."""
        return self._options.local

    async def __aenter__(self) -> Self:
        try:
            await self.hello()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel open streams and let go of the connection. Idempotent."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    # ---- the host ------------------------------------------------------------------------------------------------

    async def hello(self) -> c.HostHello:
        """See `Client.hello`."""
        return await self._call(host_calls.hello())

    async def load_model(
        self,
        path: str | Path = "",
        model_id: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        wait: bool = True,
        **config: Any,
    ) -> AsyncModel:
        """See `Client.load_model`."""
        call = host_calls.load_model(path, model_id, config, self._options.local, wait)
        return self.model((await self._call(call, on_progress)).model_id)

    def model(self, model_id: str) -> AsyncModel:
        """See `Client.model`."""
        return AsyncModel(self, check_model_id(model_id))

    async def unload(self, model_id: str) -> None:
        """See `Client.unload`."""
        await self._call(host_calls.unload(model_id))

    async def unload_model(self, model_id: str) -> None:
        """See `Client.unload`."""
        await self.unload(model_id)

    async def restart(self, model_id: str, *, on_progress: OnProgress | None = None, wait: bool = True) -> c.ModelInfo:
        """See `Client.restart`."""
        return await self._call(host_calls.restart(model_id, wait), on_progress)

    async def list_models(self) -> list[c.ModelInfo]:
        """See `Client.list_models`."""
        return await self._call(host_calls.list_models())

    async def model_info(self, model_id: str) -> c.ModelInfo:
        """See `Client.model_info`."""
        return await self._call(host_calls.model_info(model_id))

    async def models(self) -> dict[str, list[int]]:
        """See `Client.models`."""
        return await self._call(host_calls.models())

    async def counters(self) -> dict[str, float]:
        """See `Client.counters`."""
        return await self._call(host_calls.counters())

    async def events(self, since: int = 0, limit: int = 200, wait_ms: int = 0) -> c.EventList:
        """See `Client.events`."""
        return await self._call(host_calls.events(since, limit, wait_ms))

    async def host_status(self) -> c.HostStatus:
        """See `Client.host_status`."""
        return await self._call(host_calls.host_status())

    async def drain(self, timeout_s: float = 30.0) -> None:
        """See `Client.drain`."""
        await self._call(host_calls.drain(timeout_s))

    async def cancel(self, ref: str) -> None:
        """See `Client.cancel`."""
        model_id = model_of(ref)
        if model_id is not None and self._connection is not None:
            self._connection.cancel_any(model_id, ref)

    # ---- the cache -----------------------------------------------------------------------------------------------

    async def cache_stats(self) -> dict[str, Any]:
        """See `Client.cache_stats`."""
        return await self._call(host_calls.cache("stats", {}))

    async def cache_ls(self, model_id: str | None = None, limit: int = 100) -> dict[str, Any]:
        """See `Client.cache_ls`."""
        return await self._call(host_calls.cache("ls", {"model": model_id, "limit": limit}))

    async def cache_gc(self) -> dict[str, Any]:
        """See `Client.cache_gc`."""
        return await self._call(host_calls.cache("gc", {}))

    async def cache_evict(
        self, model_id: str | None = None, *, key: str | None = None, everything: bool = False, pinned: bool = False
    ) -> dict[str, Any]:
        """See `Client.cache_evict`."""
        arguments = {"model": model_id, "key": key, "everything": everything, "pinned": pinned}
        return await self._call(host_calls.cache("evict", arguments))

    async def cache_verify(self, model_id: str | None = None) -> dict[str, Any]:
        """See `Client.cache_verify`."""
        return await self._call(host_calls.cache("verify", {"model": model_id}))

    async def cache_pin(self, key: str) -> dict[str, Any]:
        """See `Client.cache_pin`."""
        return await self._call(host_calls.cache("pin", {"key": key}))

    async def cache_unpin(self, key: str) -> dict[str, Any]:
        """See `Client.cache_unpin`."""
        return await self._call(host_calls.cache("unpin", {"key": key}))

    # ---- how it is done; for AsyncModel --------------------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._closed:
            raise RuntimeError("this AsyncClient is closed")
        if self._connection is None:
            self._connection = open_connection(self._options)
            weakref.finalize(self, _close_later, self._connection)
        elif self._connection.loop is not asyncio.get_running_loop():
            raise RuntimeError("this AsyncClient belongs to another event loop; make one per loop")
        return self._connection

    async def _call(self, call: Call[T], on_progress: Callable[[Any], None] | None = None) -> T:
        connection = self._connected()
        future, settle = _future(connection.loop)
        ref = new_ref(call.target)
        connection.call(ref, call, CallListener(settle, on_progress))
        try:
            return call.read(await future)
        finally:
            connection.abandon(ref)

    async def _complete(self, model_id: str, request: InferRequest) -> Completion:
        connection = self._connected()
        ref = new_ref(model_id)
        future, settle = _future(connection.loop)
        listener = Collector(settle, lambda count: connection.read(ref, count))
        connection.stream(ref, model_id, request, self._options.stream_limits(request.max_resumes), listener)
        try:
            return await future  # type: ignore[no-any-return]
        finally:
            connection.abandon(ref)

    def _infer(self, model_id: str, request: InferRequest) -> AsyncStream:
        connection = self._connected()
        ref = new_ref(model_id)
        mailbox = AsyncMailbox()
        connection.stream(ref, model_id, request, self._options.stream_limits(request.max_resumes), mailbox)
        return AsyncStream(ref, self, connection, mailbox)


def _close_later(connection: Connection) -> None:
    """The client was dropped without being closed; the garbage collector may run on any thread."""
    try:
        connection.loop.call_soon_threadsafe(connection.close)
    except RuntimeError:  # the loop is closed, so nothing of it runs: whoever is here may close the sockets
        connection.close()


def _future(
    loop: asyncio.AbstractEventLoop,
) -> tuple["asyncio.Future[Any]", Callable[[Any, ErllamaError | None], None]]:
    """A future, and what settles it; a caller that was cancelled has settled it already."""
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: ErllamaError | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return future, settle
