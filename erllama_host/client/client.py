"""The client of a host for threads: the asyncio implementation, run on a thread of its own."""

import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from erllama_host.client import host_calls
from erllama_host.client.box import STOPPED, Box
from erllama_host.client.call_state import Call
from erllama_host.client.endpoint import client_options, open_connection
from erllama_host.client.infer_options import InferRequest
from erllama_host.client.limits import Patience
from erllama_host.client.listeners import CallListener, Collector
from erllama_host.client.model import Model
from erllama_host.client.results import Completion
from erllama_host.client.stream import Mailbox, Stream
from erllama_host.ids import check_model_id, model_of, new_ref
from erllama_host.protocol import calls as c

if TYPE_CHECKING:
    from erllama_host.client.connection import Connection
    from erllama_host.client.loop_thread import LoopThread

T = TypeVar("T")
OnProgress = Callable[[c.LoadProgress], None]


class Client:
    """A client of one host.

    Safe to share between threads. It connects when first used, or by `with`; close it, or let it go out of scope. After a fork
    the child makes its own.

    Calls wait while a model loads, and through a short absence of a host that was there before; then they raise. Streams go on
    after the death of a model's process or of the controller.
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
        """Does not connect yet.

        Args:
            endpoint: `ipc://…`, or `tcp://host:port` together with keys. None takes ERLLAMA_ENDPOINT, else the user's own host.
            timeout_s: bound of calls that have none of their own. Streams have `deadline_s`.
            key_file, server_key_file: this client's secret key file and the host's public one, made by `erllama keys`.
            max_resumes: how often in a row, without a new token, a stream is taken up again; 0: `WorkerDied` at once.
            patience: how long to wait for a host that is not there.
        Raises:
            ConfigError: a value is impossible.
        """
        self._options = client_options(endpoint, timeout_s, key_file, server_key_file, max_resumes, patience)
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._closed = False

    @property
    def endpoint(self) -> str:
        """Where the host is expected."""
        return self._options.endpoint

    @property
    def local(self) -> bool:
        """Whether the host sees the same files as this client."""
        return self._options.local

    def __enter__(self) -> Self:
        try:
            self.hello()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel open streams, let go of the connection, end the thread. Idempotent."""
        with self._lock:
            self._closed = True
            finalizer = self._finalizer
        if finalizer is not None:
            finalizer()

    # ---- the host ------------------------------------------------------------------------------------------------

    def hello(self) -> c.HostHello:
        """Who answers at the endpoint.

        Raises:
            HostUnavailable: nobody; the message says how to start a host.
        """
        return self._call(host_calls.hello())

    def load_model(
        self,
        path: str | Path = "",
        model_id: str | None = None,
        *,
        on_progress: OnProgress | None = None,
        wait: bool = True,
        **config: Any,
    ) -> Model:
        """Load a GGUF; returns when its process is ready.

        Args:
            path: the file; made absolute.
            model_id: 1 to 64 of `a-z 0-9 . _ -`. None makes one, `erllama_model_<n>`, that no other model of the host gets ever.
            on_progress: called with what the load is doing, on another thread; it must not block.
            wait: False returns at once; requests wait until the model is ready.
            config: options of the load, keys as in `[models.<id>]` of erllama.toml: `n_ctx=4096`, ….
        Raises:
            AlreadyLoaded: the id is taken. ConfigError: an option is unknown or impossible.
            ModelLoadFailed: the file cannot be loaded; says why. NoMemory: it would not fit.
        """
        call = host_calls.load_model(path, model_id, config, self.local, wait)
        return self.model(self._call(call, on_progress).model_id)

    def model(self, model_id: str) -> Model:
        """A handle to a model, whoever loaded it. Does not ask the host.

        Raises:
            InvalidRequest: that cannot be an id.
        """
        return Model(self, check_model_id(model_id))

    def unload(self, model_id: str) -> None:
        """Save what is worth it, end the model's process, free its id. Requests in flight end with `cancel_reason="unload"`.

        Raises:
            ModelNotLoaded: no such model.
        """
        self._call(host_calls.unload(model_id))

    def unload_model(self, model_id: str) -> None:
        """The same as `unload`."""
        self.unload(model_id)

    def restart(self, model_id: str, *, on_progress: OnProgress | None = None, wait: bool = True) -> c.ModelInfo:
        """Restart a model's process, also one that was given up; its streams go on afterwards."""
        return self._call(host_calls.restart(model_id, wait), on_progress)

    def list_models(self) -> list[c.ModelInfo]:
        """All models that are there or coming; one that is being unloaded is left out."""
        return self._call(host_calls.list_models())

    def model_info(self, model_id: str) -> c.ModelInfo:
        """Everything known of one model.

        Raises:
            ModelNotLoaded: no such model.
        """
        return self._call(host_calls.model_info(model_id))

    def models(self) -> dict[str, list[int]]:
        """The supervisor's view: model id → pids of its process."""
        return self._call(host_calls.models())

    def counters(self) -> dict[str, float]:
        """Counters of the cache and of the host. Without the cache daemon `cache_available` is 0 and only the host's are there."""
        return self._call(host_calls.counters())

    def events(self, since: int = 0, limit: int = 200, wait_ms: int = 0) -> c.EventList:
        """Entries of the host's journal after `since` (the `next` of an earlier answer); with none, wait up to `wait_ms`."""
        return self._call(host_calls.events(since, limit, wait_ms))

    def host_status(self) -> c.HostStatus:
        """Processes, models and memory of the host."""
        return self._call(host_calls.host_status())

    def drain(self, timeout_s: float = 30.0) -> None:
        """Stop admitting, let requests finish, save. For whoever is about to stop the host."""
        self._call(host_calls.drain(timeout_s))

    def cancel(self, ref: str) -> None:
        """Ask for the end of a stream of this client. Fire and forget, idempotent; an unknown ref is fine."""
        model_id = model_of(ref)
        if model_id is not None and self._thread is not None and self._connection is not None:
            self._thread.post(self._connection.cancel_any, model_id, ref)

    # ---- the cache -----------------------------------------------------------------------------------------------

    def cache_stats(self) -> dict[str, Any]:
        """Budgets and bytes per tier, segments and bytes per model, counters."""
        return self._call(host_calls.cache("stats", {}))

    def cache_ls(self, model_id: str | None = None, limit: int = 100) -> dict[str, Any]:
        """Stored segments, most valuable first."""
        return self._call(host_calls.cache("ls", {"model": model_id, "limit": limit}))

    def cache_gc(self) -> dict[str, Any]:
        """Drop what is superseded, orphaned or recyclable."""
        return self._call(host_calls.cache("gc", {}))

    def cache_evict(
        self, model_id: str | None = None, *, key: str | None = None, everything: bool = False, pinned: bool = False
    ) -> dict[str, Any]:
        """Drop the segments of a model, of one row (`key`, hex) and what continues it, or all. What is being read stays."""
        arguments = {"model": model_id, "key": key, "everything": everything, "pinned": pinned}
        return self._call(host_calls.cache("evict", arguments))

    def cache_verify(self, model_id: str | None = None) -> dict[str, Any]:
        """Read every stored payload and compare checksums; corrupt files are removed."""
        return self._call(host_calls.cache("verify", {"model": model_id}))

    def cache_pin(self, key: str) -> dict[str, Any]:
        """Keep the row that ends at `key` (hex), whatever is evicted."""
        return self._call(host_calls.cache("pin", {"key": key}))

    def cache_unpin(self, key: str) -> dict[str, Any]:
        """Let a pinned row go again."""
        return self._call(host_calls.cache("unpin", {"key": key}))

    # ---- how it is done; for Model and Stream --------------------------------------------------------------------

    def _connected(self) -> "Connection":
        connection = self._connection  # set once; looked at without the lock, which a forked child may never get
        if connection is None:
            with self._lock:
                connection = self._connection or self._connect()
        return connection

    def _connect(self) -> "Connection":
        from erllama_host.client.loop_thread import LoopThread  # asyncio: not before it is needed

        if self._closed:
            raise RuntimeError(STOPPED)
        thread = LoopThread()
        try:
            connection = thread.run(lambda: open_connection(self._options))
        except BaseException:
            thread.stop(lambda: None)
            raise
        self._thread, self._connection = thread, connection
        self._finalizer = weakref.finalize(self, thread.stop, connection.close)
        return connection

    def _post(self, function: Callable[..., object], *args: Any) -> None:
        if self._thread is None or not self._thread.post(function, *args):
            raise RuntimeError(STOPPED)

    def _call(self, call: Call[T], on_progress: Callable[[Any], None] | None = None) -> T:
        connection = self._connected()
        ref, box = new_ref(call.target), Box()
        try:
            self._post(connection.call, ref, call, CallListener(box.settle, on_progress))
            return call.read(box.wait())
        except BaseException:  # Ctrl-C, or whatever a signal handler raises: nobody waits any more
            self._abandon(ref)
            raise

    def _complete(self, model_id: str, request: InferRequest) -> Completion:
        connection = self._connected()
        ref, box = new_ref(model_id), Box()
        listener = Collector(box.settle, lambda count: connection.read(ref, count))
        limits = self._options.stream_limits(request.max_resumes)
        try:
            self._post(connection.stream, ref, model_id, request, limits, listener)
            return box.wait()  # type: ignore[no-any-return]
        except BaseException:  # Ctrl-C, or whatever a signal handler raises: nobody waits any more
            self._abandon(ref)
            raise

    def _infer(self, model_id: str, request: InferRequest) -> Stream:
        connection = self._connected()
        ref, mailbox = new_ref(model_id), Mailbox()
        limits = self._options.stream_limits(request.max_resumes)
        self._post(connection.stream, ref, model_id, request, limits, mailbox)
        return Stream(ref, self, mailbox)

    def _read(self, ref: str, num_tokens: int) -> None:
        """The reader of a stream took so many; nobody cares once the client is closed."""
        if self._thread is not None and self._connection is not None:
            self._thread.post(self._connection.read, ref, num_tokens)

    def _abandon(self, ref: str) -> None:
        """Nobody waits for `ref` any more."""
        if self._thread is not None and self._connection is not None:
            self._thread.post(self._connection.abandon, ref)
