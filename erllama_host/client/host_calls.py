"""Calls to the host as values: what each asks, and what its answer means. Pure; `Client` and `AsyncClient` carry them out."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erllama_host.client.call_state import Call
from erllama_host.config.model import ModelConfig
from erllama_host.errors import InvalidRequest
from erllama_host.ids import check_model_id
from erllama_host.protocol import calls as c

LOAD_MARGIN_S = 30.0
"""A load has its own time limit in the host; the client waits a little longer than that, and for its turn."""
_LOADS_AHEAD = 3
CACHE_TIMEOUT_S = 120.0
VERIFY_TIMEOUT_S = 3600.0
"""Every byte of a tier is read: a terabyte at 300 MB/s."""


def same(answer: Any) -> Any:
    """The answer as it came."""
    return answer


def nothing(_: c.Ok) -> None:
    """Calls that answer nothing."""


def hello() -> Call[c.HostHello]:
    """Who answers?"""
    return Call("hello", same)


def load_model(
    path: str | Path, model_id: str | None, config: Mapping[str, Any], local: bool, wait: bool
) -> Call[c.ModelInfo]:
    """Load a model; `path` is made absolute where the host is on this machine.

    Raises:
        InvalidRequest: `path` is none, or `model_id` breaks the rule for ids.
    """
    if not isinstance(path, str | Path):
        raise InvalidRequest(f"path must be a string or a path, got {path!r}", field="path")
    if model_id is not None:
        check_model_id(model_id)
    load_timeout_s = config.get("load_timeout_s", ModelConfig().load_timeout_s)
    body = c.LoadModel(
        path=str(Path(path).absolute()) if local and path else str(path),
        model_id=model_id,
        config=dict(config),
        request_id=secrets.token_hex(16),
        wait=wait,
    )
    timeout_s = _LOADS_AHEAD * load_timeout_s + LOAD_MARGIN_S if isinstance(load_timeout_s, int | float) else None
    return Call("load_model", same, body=body, timeout_s=timeout_s)


def unload(model_id: str) -> Call[None]:
    """Save and unload."""
    return Call("unload", nothing, body=c.ModelRef(model_id=model_id), timeout_s=120.0)


def restart(model_id: str, wait: bool) -> Call[c.ModelInfo]:
    """Restart the worker."""
    timeout_s = ModelConfig().load_timeout_s + LOAD_MARGIN_S
    return Call("restart", same, body=c.Restart(model_id=model_id, wait=wait), timeout_s=timeout_s)


def list_models() -> Call[list[c.ModelInfo]]:
    """All loaded models."""
    return Call("list_models", _models)


def model_info(model_id: str) -> Call[c.ModelInfo]:
    """One model."""
    return Call("model_info", same, body=c.ModelRef(model_id=model_id))


def models() -> Call[dict[str, list[int]]]:
    """The supervisor's view."""
    return Call("models", _pids)


def counters() -> Call[dict[str, float]]:
    """All counters."""
    return Call("counters", _counters)


def events(since: int, limit: int, wait_ms: int) -> Call[c.EventList]:
    """The journal."""
    body = c.Events(since=since, limit=limit, wait_ms=wait_ms)
    return Call("events", same, body=body, timeout_s=30.0 + wait_ms / 1000)


def host_status() -> Call[c.HostStatus]:
    """Everything about the host."""
    return Call("host_status", same)


def drain(timeout_s: float) -> Call[None]:
    """Stop admitting, finish, save."""
    return Call("drain", nothing, body=c.Drain(timeout_s=timeout_s), timeout_s=timeout_s + 60.0)


def cache(op: str, arguments: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """An operation of the cache daemon; arguments that are None are left out."""
    body = c.CacheCall(op=op, arguments={key: value for key, value in arguments.items() if value is not None})
    return Call("cache", _result, body=body, timeout_s=VERIFY_TIMEOUT_S if op == "verify" else CACHE_TIMEOUT_S)


def _models(answer: c.ModelList) -> list[c.ModelInfo]:
    return answer.models


def _pids(answer: c.WorkerPids) -> dict[str, list[int]]:
    return answer.pids


def _counters(answer: c.Counters) -> dict[str, float]:
    return answer.counters


def _result(answer: c.CacheAnswer) -> dict[str, Any]:
    return answer.result
