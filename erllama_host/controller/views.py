"""What the host shows of itself: the lifecycle merged with what workers and the system say. Reads only."""

import os
import time
from collections.abc import Iterable

import msgspec
import psutil

from erllama_host.controller.lifecycle import Model, State, shown_status
from erllama_host.controller.placement import Candidate, Memory
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError
from erllama_host.protocol.calls import ModelInfo, ProcessInfo
from erllama_host.supervisor.notes import watcher_name

_HAS_WORKER = frozenset({State.READY, State.STOPPING})
"""States in which the figures of the last beat still are those of a process."""


def model_info(model: Model, now: float) -> ModelInfo:
    """Everything known of one model."""
    known = model.info or ModelInfo(model_id=model.model_id, backend=model.config.backend, path=model.config.path)
    if model.state not in _HAS_WORKER:
        known = _at_rest(known)
    return msgspec.structs.replace(
        known,
        model_id=model.model_id,
        status=shown_status(model),
        pid=model.pid if model.state in (State.READY, State.LOADING, State.RESTARTING) else 0,
        restarts=model.restarts,
        incarnation=model.incarnation,
        path=known.path or model.config.path,
        last_failure=model.failure.message if model.failure is not None else model.last_failure,
        last_log_lines=model.last_log_lines,
        configured=model.source == "config",
        idle_s=now - model.last_used,
    )


def _at_rest(info: ModelInfo) -> ModelInfo:
    """What a worker said of itself and of its model, without what ended with it."""
    return msgspec.structs.replace(
        info,
        resident_bytes=0,
        device_bytes=0,
        pending=0,
        queue_depth=0,
        used_cells=0,
        live_cells=0,
        tokens_per_s=0.0,
        prefill_tokens_per_s=0.0,
        uptime_s=0.0,
    )


def candidate(model: Model, now: float) -> Candidate:
    """A model as placement sees it."""
    info = model.info
    return Candidate(
        model_id=model.model_id,
        priority=model.config.priority,
        pending=info.pending if info is not None else 0,
        idle_s=now - model.last_used,
        live_cells=info.live_cells if info is not None else 0,
        keep_alive_s=model.config.keep_alive_s,
    )


async def pids(world: World, model: Model) -> list[int]:
    """The supervisor's view of a model's processes."""
    try:
        return await world.circus.pids(watcher_name(model.model_id))
    except ErllamaError:
        return []


async def processes(world: World, models: list[ModelInfo]) -> list[ProcessInfo]:
    """Every process of the host."""
    cache = await world.circus.pids("cache")
    found = [_process("circusd", os.getppid()), _process("controller", os.getpid())]
    found += [_process("cache", pid) for pid in cache] or [ProcessInfo(role="cache", status="down")]
    for info in models:
        process = _process(watcher_name(info.model_id), info.pid)
        found.append(
            msgspec.structs.replace(process, status=info.status, restarts=info.restarts, last_failure=info.last_failure)
        )
    return found


def memory(memories: Iterable[Memory]) -> dict[str, float]:
    """Memories as flat numbers."""
    shown: dict[str, float] = {}
    for each in memories:
        shown |= {f"{each.name}_total_bytes": each.total_bytes, f"{each.name}_used_bytes": each.used_bytes}
    return shown


def counters(world: World) -> dict[str, float]:
    """The host's counters: the controller's own, and the sums of what the workers last told."""
    found = dict(world.tallies)
    found["dropped_to_clients"] = world.front.num_dropped
    found["restarts"] = sum(model.restarts for model in world.models)
    found |= {f"errors_{code}": number for code, number in world.front.errors.items()}
    for link in world.links.all():
        for name, value in (link.beat.counters if link.beat is not None else {}).items():
            found[name] = found.get(name, 0) + value
    return found


def _process(role: str, pid: int) -> ProcessInfo:
    try:
        process = psutil.Process(pid) if pid else None
        if process is None:
            return ProcessInfo(role=role)
        with process.oneshot():
            return ProcessInfo(
                role=role,
                pid=pid,
                status="stopped" if process.status() == psutil.STATUS_STOPPED else "running",
                uptime_s=max(0.0, time.time() - process.create_time()),
                resident_bytes=process.memory_info().rss,
            )
    except psutil.Error:
        return ProcessInfo(role=role, pid=pid, status="gone")
