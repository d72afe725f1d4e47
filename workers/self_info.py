"""What a worker tells of itself: its part of ModelInfo, its heartbeat. Reads /proc, keeps nothing but the start time."""

import os
import time

import psutil

from erllama_host.config.model import ModelSpec
from erllama_host.protocol.calls import AdapterInfo, ModelInfo
from erllama_host.protocol.link import WorkerBeat
from workers.commands import EngineSnapshot
from workers.model import LoadedModel

IDLE = EngineSnapshot()


class SelfInfo:
    """Describes one worker. Service thread only.

    Attributes:
        adapters: what is attached, as far as the service has been told.
    """

    def __init__(self, spec: ModelSpec, incarnation: str) -> None:
        self._spec = spec
        self._incarnation = incarnation
        self._started_at = time.monotonic()
        self._busy_until = time.monotonic()
        self._process = psutil.Process()
        self.adapters: list[AdapterInfo] = []

    def model_info(self, status: str, model: LoadedModel | None, pending: int) -> ModelInfo:
        """Everything this worker knows; what a load has not found out yet has the default."""
        now = time.monotonic()
        config = self._spec.config
        snapshot = model.engine.snapshot if model is not None else IDLE
        if pending or snapshot.phase != "idle":
            self._busy_until = now
        info: dict[str, object] = {
            "model_id": self._spec.model_id,
            "status": status,
            "pid": os.getpid(),
            "backend": config.backend,
            "path": config.path,
            "incarnation": self._incarnation,
            "resident_bytes": self._process.memory_info().rss,
            "pending": pending,
            "uptime_s": now - self._started_at,
            "idle_s": now - self._busy_until,
            "adapters": self.adapters,
        }
        if model is not None:
            info |= _of_model(model) | _of_snapshot(snapshot)
        return ModelInfo(**info)  # type: ignore[arg-type]

    def beat(self, status: str, model: LoadedModel | None, pending: int) -> WorkerBeat:
        """The heartbeat now."""
        snapshot = model.engine.snapshot if model is not None else IDLE
        work = model.engine.work if model is not None else None
        return WorkerBeat(
            incarnation=self._incarnation,
            status=status,
            busy_for_s=0.0 if work is None else max(0.0, time.monotonic() - work.since),
            stall_limit_s=self._spec.config.hang_timeout_s if work is None else work.limit_s,
            info=self.model_info(status, model, pending),
            counters=dict(snapshot.counters),
        )


def _of_model(model: LoadedModel) -> dict[str, object]:
    facts, limits, footprint = model.facts, model.limits, model.footprint
    return {
        "architecture": facts.architecture,
        "description": facts.description,
        "quantisation": facts.quantization,
        "num_parameters": facts.num_params,
        "size_bytes": facts.size_bytes,
        "n_ctx": limits.n_ctx,
        "n_ctx_train": facts.n_ctx_train,
        "n_cells": limits.num_cells,
        "n_seq_max": limits.num_slots,
        "n_vocab": facts.n_vocab,
        "n_embd": facts.n_embd,
        "fingerprint": model.fingerprint,
        "tier": model.tier,
        "kv_mode": model.kv_mode,
        "kv_reason": model.kv_reason,
        "has_chat_template": facts.chat_template is not None,
        "device_bytes": footprint.device_model_bytes + footprint.device_context_bytes,
        "load_ms": model.load_ms,
        "components": {"backend": facts.build, "system": facts.system},
    }


def _of_snapshot(snapshot: EngineSnapshot) -> dict[str, object]:
    counters = snapshot.counters
    uncached = {"kv_mode": "uncached", "kv_reason": snapshot.cache_refused} if snapshot.cache_refused else {}
    return uncached | {
        "queue_depth": snapshot.queued,
        "used_cells": snapshot.used_cells,
        "live_cells": snapshot.live_cells,
        "tokens_per_s": snapshot.tokens_per_s,
        "prefill_tokens_per_s": snapshot.prefill_tokens_per_s,
        "last_cache_hit": snapshot.last_cache_hit,
        "cache_hits": int(sum(counters.get(f"hits_{kind}", 0) for kind in ("exact", "partial", "live"))),
        "cache_misses": int(counters.get("misses", 0)),
    }
