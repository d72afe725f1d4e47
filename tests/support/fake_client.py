"""A `Client` without a host: the calls that the command line makes, answered from plain values in this process.

It behaves (loading adds a model, unloading removes it, a stream ends when it is cancelled); what it was asked is in `asked`.
"""

import time
from collections.abc import Iterator
from typing import Any

from erllama_host.client.results import Piece, StreamStats
from erllama_host.errors import ErllamaError, ModelNotLoaded
from erllama_host.protocol.calls import Event, EventList, HostHello, HostStatus, LoadProgress, ModelInfo, ProcessInfo
from erllama_host.protocol.inference import CacheReport

TIERS = {
    "ram": {
        "kind": "ram",
        "path": "/dev/shm/erllama-0-0123456789ab",
        "recyclable_files": 1,
        "budget_bytes": 1 << 30,
        "limit_bytes": 1 << 30,
        "used_bytes": 1 << 28,
        "published_bytes": 1 << 28,
        "reserved_bytes": 0,
        "recyclable_bytes": 1 << 20,
        "unlinked_bytes": 0,
        "segments": 2,
    }
}


def segment(key: str = "ab" * 32, **fields: Any) -> dict[str, Any]:
    """A row of `cache ls`."""
    row = {
        "key": key,
        "kind": "block",
        "model": "tiny",
        "start": 0,
        "end": 256,
        "bytes": 3 << 20,
        "tiers": ["disk", "ram"],
        "reason": "cold",
        "hits": 3,
        "idle_s": 12.0,
        "age_s": 3700.0,
        "pinned": False,
        "leased": False,
        "superseded": False,
    }
    return {**row, **fields}


class FakeStream:
    """Pieces, then figures. `interrupt_at`: Ctrl-C arrives instead of that piece."""

    def __init__(self, pieces: list[Piece], interrupt_at: int | None = None) -> None:
        self.stats: StreamStats | None = None
        self.cancelled = False
        self._all = pieces
        self._index = 0
        self._interrupt_at = interrupt_at

    def __enter__(self) -> "FakeStream":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._interrupt_at == self._index:
            self._interrupt_at = None
            raise KeyboardInterrupt
        if self.cancelled or self._index == len(self._all):
            self.stats = StreamStats(
                prompt_tokens=12,
                generated_tokens=self._index,
                tokens_per_s=55.5,
                client_ttft_ms=31.0,
                finish_reason="cancelled" if self.cancelled else "stop",
                cancelled=self.cancelled,
                cancel_reason="client" if self.cancelled else None,
                cache=CacheReport(kind="exact", read_tokens=11),
            )
            raise StopIteration
        self._index += 1
        return self._all[self._index - 1]

    def cancel(self) -> None:
        self.cancelled = True


class FakeModel:
    """A handle; `client.answers` are the pieces of the next streams."""

    def __init__(self, client: "FakeClient", model_id: str) -> None:
        self._client = client
        self.model_id = model_id

    def info(self) -> ModelInfo:
        return self._client.find(self.model_id)

    def infer(self, prompt: Any, **options: Any) -> FakeStream:
        return self._client.stream("infer", prompt, options)

    def chat_stream(self, messages: Any, system: str | None = None, **options: Any) -> FakeStream:
        asked = [dict(message) for message in messages]
        return self._client.stream("chat_stream", asked, {"system": system, **options})

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        self.info()
        return ([1] if add_special else []) + [ord(character) for character in text]

    def detokenize(self, tokens: list[int], special: bool = False) -> str:
        return "".join("<s>" if token == 1 else chr(token) for token in tokens)

    def embed(self, texts: list[str], *, normalize: bool = False) -> list[list[float]]:
        self.info()
        return [[float(len(text)), 1.0, 0.0] for text in texts]

    def unload(self) -> None:
        self._client.unload(self.model_id)


class FakeClient:
    """A host with the given models."""

    def __init__(self, *models: ModelInfo) -> None:
        self.infos = {model.model_id: model for model in models}
        self.asked: list[tuple[Any, ...]] = []
        self.answers: list[FakeStream | ErllamaError] = []
        self.journal: list[Event] = []
        self.segments = [segment()]
        self.corrupt_files = 0
        self.fail_with: BaseException | None = None
        self.load_ends_with: BaseException | None = None
        """An error: the load fails. Anything else: its caller is interrupted, and the host goes on loading."""

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def find(self, model_id: str) -> ModelInfo:
        self._check()
        if model_id not in self.infos:
            raise ModelNotLoaded(f"no model {model_id!r} is loaded")
        return self.infos[model_id]

    def stream(self, *asked: Any) -> FakeStream:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, ErllamaError):
            raise answer
        return answer

    def model(self, model_id: str) -> FakeModel:
        return FakeModel(self, model_id)

    def load_model(
        self, path: str, model_id: str | None = None, *, on_progress: Any = None, **config: Any
    ) -> FakeModel:
        self._check()
        name = model_id or "erllama_model_1"
        self.asked.append(("load_model", str(path), model_id, config))
        on_progress(LoadProgress(model_id=name, phase="loading", fraction=0.5, loaded_bytes=50, total_bytes=100))
        if isinstance(self.load_ends_with, ErllamaError):
            raise self.load_ends_with
        self.infos[name] = ModelInfo(model_id=name, status="idle", pid=100, path=str(path), has_chat_template=True)
        if self.load_ends_with is not None:
            raise self.load_ends_with
        return self.model(name)

    def unload(self, model_id: str) -> None:
        self.find(model_id)
        del self.infos[model_id]

    def restart(self, model_id: str, *, on_progress: Any = None) -> ModelInfo:
        return self.find(model_id)

    def list_models(self) -> list[ModelInfo]:
        self._check()
        return list(self.infos.values())

    def models(self) -> dict[str, list[int]]:
        return {model_id: [info.pid] for model_id, info in self.infos.items()}

    def counters(self) -> dict[str, float]:
        return {"requests": 3, "hits_exact": 2, "restore_ms": 1.25}

    def events(self, since: int = 0, limit: int = 200, wait_ms: int = 0) -> EventList:
        found = [event for event in self.journal if event.seq > since]
        if wait_ms and not found:
            raise KeyboardInterrupt  # whoever follows goes on until Ctrl-C
        return EventList(events=found, next=max([since, *(event.seq for event in found)]))

    def host_status(self) -> HostStatus:
        self._check()
        hello = HostHello(
            version="0.1.0",
            protocol=1,
            instance="0123456789ab",
            pid=7,
            started_at=time.time() - 3700,
            run_dir="/run/erllama",
            home="/home/erllama",
            cache_available=True,
            components={"llama.cpp": "b1", "pyzmq": "27"},
        )
        processes = [
            ProcessInfo(role="circusd", pid=5, status="running", uptime_s=3700, resident_bytes=30 << 20),
            ProcessInfo(
                role="cache", pid=6, status="running", restarts=1, uptime_s=60, last_failure="killed by SIGKILL"
            ),
        ]
        memory = {"total_bytes": 24 << 30, "used_share": 0.25}
        return HostStatus(hello=hello, processes=processes, models=list(self.infos.values()), memory=memory)

    def cache_ls(self, model_id: str | None = None, limit: int = 100) -> dict[str, Any]:
        return {"segments": self.segments[:limit], "total": len(self.segments)}

    def cache_stats(self) -> dict[str, Any]:
        models = {"tiny": {"segments": 2, "tokens": 512, "bytes": 6 << 20, "hits_exact": 4, "misses": 1}}
        return {"tiers": TIERS, "models": models, "segments": 2, "counters": {"hits_exact": 4, "saved_bytes": 6 << 20}}

    def cache_gc(self) -> dict[str, Any]:
        return {"dropped_segments": 1, "freed_bytes": 3 << 20, "freed_recyclable_bytes": 0}

    def cache_evict(self, model_id: str | None = None, **arguments: Any) -> dict[str, Any]:
        self.asked.append(("cache_evict", model_id, arguments))
        return {"dropped_segments": 2, "freed_bytes": 6 << 20, "kept_segments": 0}

    def cache_verify(self, model_id: str | None = None) -> dict[str, Any]:
        return {"checked_files": 2, "corrupt_files": self.corrupt_files}

    def cache_pin(self, key: str) -> dict[str, Any]:
        self.asked.append(("cache_pin", key))
        return {"segments": 1, "pinned": True}

    def cache_unpin(self, key: str) -> dict[str, Any]:
        self.asked.append(("cache_unpin", key))
        return {"segments": 1, "pinned": False}

    def _check(self) -> None:
        if self.fail_with is not None:
            raise self.fail_with


def pieces(*texts: str, channel: str = "text") -> list[Piece]:
    """One piece per text."""
    return [Piece(text, [index], index, channel) for index, text in enumerate(texts)]


def tiny(**fields: Any) -> ModelInfo:
    """A loaded model with figures in every column."""
    values: dict[str, Any] = {
        "model_id": "tiny",
        "status": "generating",
        "pid": 4242,
        "restarts": 1,
        "path": "/models/tiny.gguf",
        "quantisation": "Q8_0",
        "num_parameters": 134_515_008,
        "size_bytes": 144 << 20,
        "n_ctx": 8192,
        "n_cells": 16384,
        "used_cells": 4096,
        "kv_mode": "segments",
        "has_chat_template": True,
        "resident_bytes": 812 << 20,
        "queue_depth": 2,
        "tokens_per_s": 87.25,
        "prefill_tokens_per_s": 410.0,
        "cache_hits": 9,
        "cache_misses": 3,
        "uptime_s": 3723.0,
        "description": "llama 135M Q8_0",
    }
    return ModelInfo(**{**values, **fields})
