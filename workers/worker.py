"""One worker, put together: socket, service loop, engine thread, and the way out. See `run_worker`."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from erllama_host.config import CacheConfig, ModelConfig, ModelSpec, Paths, resolve_tier
from erllama_host.errors import ConfigError, ErllamaError
from erllama_host.ids import new_incarnation, new_routing_id
from erllama_host.observability import Log
from erllama_host.process import ExitCode
from erllama_host.transport.sockets import dealer
from workers.backend.open import open_backend
from workers.chat.markers import TextMaker, find_markers
from workers.chat.prompts import Chat, make_chat
from workers.commands import Stop
from workers.dispatch import Dispatcher
from workers.engine import Engine, EngineHooks, Ready
from workers.inbox import Inbox
from workers.kv_store import KvStore, cache_endpoint
from workers.limits import apply_limits
from workers.model import EngineEnded, LoadAdvanced, Loaded, LoadedModel, LoadFailed
from workers.outbox import Outbox
from workers.presence import Presence
from workers.self_info import SelfInfo
from workers.service import Service

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep the GIL from another: at Python's 5 ms a busy service thread costs a third of the decode rate."""
ENGINE_STOP_S = 2.0
LINGER_MS = 500
FAILURE_LINGER_MS = 2000
"""A failed load is worth waiting for: nothing else tells the caller why."""


def read_spec(path: Path) -> ModelSpec:
    """What the controller has written for this model.

    Raises:
        ConfigError: missing, not a specification, or one that cannot be.
    """
    try:
        spec = msgspec.json.decode(path.read_bytes(), type=ModelSpec)
        resolve_tier(spec.config, msgspec.convert(spec.cache, CacheConfig))
        return spec
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", key="model") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}", key="model") from error


def run_worker(model_id: str, paths: Paths) -> ExitCode:
    """Serve the model until the process has to end; the caller must leave with the code returned, at once.

    Whatever goes wrong before the model is ready is told to the controller (`w.failed`), and kept in a file for whoever looks while
    the controller is down.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    failed_note = paths.failure_file(model_id)
    failed_note.unlink(missing_ok=True)
    problem: ErllamaError | None = None
    try:
        spec = read_spec(paths.spec_file(model_id))
        apply_limits(spec.config)
    except ConfigError as error:
        spec, problem = ModelSpec(model_id=model_id, load_id="", config=ModelConfig()), error
    worker = Worker(spec, paths)
    code = worker.serve(problem)
    if worker.failure is not None:
        # Without a note nobody learns of it while the controller is down; without the exit code it would be tried again for ever.
        with suppress(OSError):
            _write_note(failed_note, spec, worker.failure)
    worker.leave(code)
    return code


class Worker:
    """The parts of one worker process. Made, run and ended by the main thread, which is the service thread."""

    def __init__(self, spec: ModelSpec, paths: Paths) -> None:
        self._spec = spec
        self._paths = paths
        self._log = Log(f"model:{spec.model_id}")
        self._incarnation = new_incarnation(time.time_ns())
        self._inbox: Inbox[object] = Inbox()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = dealer(self._context, new_routing_id())
        outbox, info = Outbox(self._socket, spec.model_id, self._log), SelfInfo(spec, self._incarnation)
        presence = Presence(spec, self._incarnation, info, outbox, os.getpid())
        self._dispatcher = Dispatcher(
            spec, self._incarnation, outbox, info, presence, self._log, self._inbox.put, self._make_chat
        )
        self._service = Service(self._socket, self._inbox, self._dispatcher)
        self._cache = msgspec.convert(spec.cache, CacheConfig)
        self._tier = resolve_tier(spec.config, self._cache)
        self._texts = TextMaker()
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None

    @property
    def failure(self) -> ErllamaError | None:
        """Why the model could not be loaded."""
        return self._dispatcher.failure

    def serve(self, problem: ErllamaError | None) -> ExitCode:
        """Load and serve; with `problem`, only report it."""
        signal.signal(signal.SIGTERM, self._service.on_signal)
        if problem is None:
            self._start_engine()
        else:
            self._inbox.put(LoadFailed(problem))
        return self._service.run(self._paths.ipc("workers.sock"))

    def leave(self, code: ExitCode) -> None:
        """Give the engine a moment to end its requests, and the socket one to send what is queued."""
        if self._engine is not None and self._thread is not None and code is ExitCode.CLEAN and self._dispatcher.model:
            self._engine.post(Stop())
            self._engine.abort()
            self._thread.join(ENGINE_STOP_S)
            self._dispatcher.farewell(time.monotonic())
        self._service.close()
        self._socket.close(linger=LINGER_MS if self.failure is None else FAILURE_LINGER_MS)
        self._context.term()

    # ---- the engine thread ---------------------------------------------------------------------------------------

    def _start_engine(self) -> None:
        put = self._inbox.put
        hooks = EngineHooks(
            wake_service=self._inbox.wake,
            on_progress=lambda fraction, phase: put(LoadAdvanced(phase, fraction)),
            on_ready=lambda ready: put(Loaded(self._loaded(ready))),
            on_load_failed=lambda error: put(LoadFailed(error)),
            on_crash=lambda error: put(EngineEnded(error)),
            on_stopped=lambda: put(EngineEnded(None)),
        )
        self._engine = Engine(
            self._spec,
            open_backend=open_backend,
            make_store=self._make_store,
            make_text=self._texts,
            hooks=hooks,
            log=self._log,
        )
        self._thread = threading.Thread(target=self._engine.run, name="engine", daemon=True)
        self._thread.start()

    def _make_store(self, namespace: bytes, wake: Callable[[], None]) -> KvStore | None:
        if not self._spec.config.policy.enabled:
            return None
        return KvStore(
            endpoint=cache_endpoint(self._paths.run),
            model_id=self._spec.model_id,
            incarnation=self._incarnation,
            namespace=namespace,
            tier=self._tier,
            block_tokens=self._cache.block_tokens,
            on_wake=wake,
            timeout_s=self._cache.call_timeout_ms / 1e3,
            log=self._log,
        )

    def _loaded(self, ready: Ready) -> LoadedModel:
        """In the engine thread, before it takes its first request."""
        assert self._engine is not None
        backend = ready.backend
        self._texts.markers = find_markers(self._spec.config, ready.info.chat_template)
        return LoadedModel(
            engine=self._engine,
            vocabulary=backend.vocabulary,
            check_sampling=backend.check_sampling,
            facts=ready.info,
            limits=backend.limits,
            markers=self._texts.markers,
            footprint=backend.footprint(),
            fingerprint=ready.fingerprint,
            tier=self._tier,
            kv_mode=ready.kv_mode.value,
            kv_reason=ready.kv_reason,
            load_ms=ready.load_ms,
        )

    def _make_chat(self, model: LoadedModel) -> Chat:
        return make_chat(model, self._paths.home / "replies" / f"{self._spec.model_id}.bin", self._log)


def _write_note(path: Path, spec: ModelSpec, error: ErllamaError) -> None:
    note = {
        "load_id": spec.load_id,
        "code": error.code,
        "message": error.message,
        "details": error.details,
        "at": time.time(),
    }
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(note, default=str), encoding="utf-8")
    temporary.replace(path)
