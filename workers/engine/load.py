"""From a model's specification to a `Core` that serves: everything between the start of the engine thread and `ready`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from erllama_host.config.host import CacheConfig
from erllama_host.config.model import ModelConfig, ModelSpec
from erllama_host.errors import ErllamaError, InvalidRequest
from erllama_host.observability import Log
from workers.adapters import AdapterTable, handle_of
from workers.backend.base import Backend, Progress
from workers.backend.values import KvMode, ModelFacts, SelfCheck
from workers.counters import new_counters
from workers.engine.core import Clock, Core, MakeText
from workers.engine.mailbox import Mailbox
from workers.engine.pulse import Pulse
from workers.fingerprint import file_sha256, model_fingerprint, remember_mode, remembered_mode
from workers.kv_session import KvSession
from workers.kv_store import KvStore
from workers.namespace import Namespace, context_hash
from workers.pool import Pool

OpenBackend = Callable[[ModelConfig, Progress], Backend]
MakeStore = Callable[[bytes, Callable[[], None]], KvStore | None]
"""(namespace, wake) → the cache client of this model; None where it runs without a cache."""

REGISTRATION_WAIT_S = 0.5
REGISTRATION_POLL_S = 0.002


@dataclass(frozen=True)
class Ready:
    """What the rest of the worker may know of the loaded model. `backend`: see its threading rules."""

    backend: Backend
    info: ModelFacts
    fingerprint: str
    namespace: bytes
    kv_mode: KvMode
    kv_reason: str
    load_ms: float


def load(
    spec: ModelSpec, open_backend: OpenBackend, make_store: MakeStore, make_text: MakeText, mailbox: Mailbox,
    on_progress: Progress, clock: Clock, log: Log,
) -> tuple[Core, Ready]:  # fmt: skip
    """Load the model and everything around it, on the calling thread.

    Raises:
        ModelLoadFailed, ConfigError: the model cannot be loaded, and would not be next time.
    """
    started = time.monotonic()
    home = Path(spec.home) if spec.home else None
    config = spec.config
    fingerprint = model_fingerprint(config, home)
    backend = open_backend(config, on_progress)
    quant = config.quant_type or backend.info.quantization
    namespace = Namespace(fingerprint, quant, context_hash(config.ctx_params_hash, backend.kv_shape))
    pool, counters = Pool(backend), new_counters()
    store = make_store(namespace.root, mailbox.wake)
    on_progress(1.0, "self_check")
    verdict = check(backend, namespace, home)
    await_registration(store)
    cache = msgspec.convert(spec.cache, CacheConfig) if spec.cache else CacheConfig()
    core = Core(
        config=config,
        backend=backend,
        pool=pool,
        adapters=AdapterTable(backend),
        namespace=namespace,
        kv=KvSession(pool, store, namespace.root, config, cache, counters, clock),
        mailbox=mailbox,
        make_text=make_text,
        clock=clock,
        log=log,
        counters=counters,
        pulse=Pulse(config.hang_timeout_s, clock),
    )
    attach_adapters(core, spec)
    on_progress(1.0, "ready")
    load_ms = (time.monotonic() - started) * 1e3
    ready = Ready(backend, backend.info, fingerprint.hex(), namespace.root, backend.kv_mode, verdict.reason, load_ms)
    log.info("model_loaded", load_ms=round(load_ms), kv_mode=backend.kv_mode.value, kv_reason=verdict.reason)
    return core, ready


def await_registration(store: KvStore | None) -> None:
    """Wait, within bounds, until the cache daemon knows this worker: else the first request of every life would be cold.

    The connection was begun before the self-check, so there is mostly nothing to wait for.
    """
    deadline = time.monotonic() + REGISTRATION_WAIT_S
    while store is not None and not (store.connected or store.refused) and time.monotonic() < deadline:
        time.sleep(REGISTRATION_POLL_S)


def check(backend: Backend, namespace: Namespace, home: Path | None) -> SelfCheck:
    """Which KV mode this model has proved, now or in an earlier life of the same model and context."""
    known = remembered_mode(home, namespace.root)
    if known is not None:
        backend.assume(known)
        return SelfCheck(known, "proved by an earlier self-check", 0.0)
    verdict = backend.self_check()
    remember_mode(home, namespace.root, verdict)
    return verdict


def attach_adapters(core: Core, spec: ModelSpec) -> None:
    """Attach what was attached before a respawn. A file that is gone, or another now, is left out and logged."""
    for adapter in spec.adapters:
        try:
            sha256 = file_sha256(Path(adapter.path))
            if handle_of(sha256) != adapter.handle:
                raise InvalidRequest(f"the file {adapter.path} has changed since it was loaded", field="path")
            core.adapters.load(adapter.path, sha256, adapter.scale)
        except (ErllamaError, OSError) as error:
            core.log.error("adapter_lost", handle=adapter.handle, path=adapter.path, reason=str(error))
