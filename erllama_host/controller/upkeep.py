"""What the controller does every second or so: beat, watch heartbeats and hangs, reconcile, relieve memory, unload the unused.

Every task looks, decides by pure code (watch.py, reconcile.py, placement.py) and lets the keeper act.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable

import psutil

from erllama_host.controller import placement, views
from erllama_host.controller.deaths import Deaths
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Event, Model, State
from erllama_host.controller.reconcile import Act, Step, differences
from erllama_host.controller.room import cache_ram_bytes
from erllama_host.controller.watch import Heartbeats
from erllama_host.controller.worker_calls import evict
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, ModelFailed, ModelLoadFailed
from erllama_host.supervisor import notes

TICK_S = 1.0
RECONCILE_S = 2.0
CACHE = "cache"


class Upkeep:
    """The periodic tasks; owner of their small memories."""

    def __init__(self, world: World, keeper: Keeper, deaths: Deaths, heartbeats: Heartbeats) -> None:
        self._world = world
        self._keeper = keeper
        self._deaths = deaths
        self._heartbeats = heartbeats
        self._cache_beats = Heartbeats(world.config.host.heartbeat_timeout_s)
        self._pressure = placement.Pressure(world.config.host.memory_high, world.config.host.memory_low)
        self._stopped_before: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._beat_file = world.paths.run / notes.BEAT_FILE

    def start(self) -> None:
        """Begin."""
        self._beat_file.write_text(str(os.getpid()), encoding="ascii")
        loop = asyncio.get_running_loop()
        for interval_s, work in (
            (TICK_S, self._beat),
            (TICK_S, self._watch_workers),
            (TICK_S, self._watch_cache),
            (RECONCILE_S, self._reconcile),
            (self._world.config.host.memory_interval_s, self._relieve),
            (TICK_S, self._unload_unused),
        ):
            self._tasks.append(loop.create_task(self._every(interval_s, work)))

    async def failure(self) -> None:
        """Wait for ever; raises what no task expected. A controller without its upkeep must not live on."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _every(self, interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except ErllamaError as error:
                # circusd or the daemon did not answer: the next round comes soon.
                self._world.log.rate_limited("upkeep", task=work.__name__, error=error.message)
            await asyncio.sleep(interval_s)

    async def _beat(self) -> None:
        os.utime(self._beat_file)

    async def _watch_workers(self) -> None:
        now = time.monotonic()
        for name in self._heartbeats.overdue(now):
            self._heartbeats.forget(name)
            model = self._world.models.find(name)
            if model is not None and self._world.links.of_model(name) is not None:
                timeout_s = self._world.config.host.heartbeat_timeout_s
                self._keeper.kill(model, f"hung: its process has not been heard of for {timeout_s:g} s")
        for model in self._world.models:
            reason = hang(model, self._beat_of(model), now)
            if reason:
                self._stop_hung(model, reason)

    def _beat_of(self, model: Model) -> tuple[float, float]:
        link = self._world.links.of_model(model.model_id)
        return (
            (link.beat.busy_for_s, link.beat.stall_limit_s)
            if link is not None and link.beat is not None
            else (0.0, 1.0)
        )

    def _stop_hung(self, model: Model, reason: str) -> None:
        self._keeper.kill(model, reason)
        if model.state is State.LOADING and not model.stays:
            self._keeper.fail(model, ModelLoadFailed(f"model {model.model_id!r}: {reason}"))

    async def _watch_cache(self) -> None:
        """Kill a daemon that has answered before and does not any more; circus starts another."""
        available = await self._world.cache.ping(TICK_S)
        now = time.monotonic()
        if available:
            self._cache_beats.heard(CACHE, now)
        self._world.cache_available = available
        if self._cache_beats.overdue(now):
            for pid in await self._world.circus.pids(CACHE):
                self._world.journal.add("cache_killed", pid=pid, reason="hung")
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            self._cache_beats.forget(CACHE)  # not before: circusd may be the one that does not answer

    async def _reconcile(self) -> None:
        statuses = await self._world.circus.statuses()
        models = list(self._world.models)
        for model in models:
            if model.state is not State.READY:
                self._deaths.look(model)  # circus's hint may have been lost
        busy = {model.model_id: self._keeper.is_busy(model) for model in models}
        stopped = set()
        for step in differences(models, statuses, busy):
            if step.act is Act.MARK_STOPPED:
                stopped.add(step.model_id)
            await self._carry_out(step)
        self._stopped_before = stopped

    async def _carry_out(self, step: Step) -> None:
        model = self._world.models.find(step.model_id)
        if step.act is Act.REMOVE_WATCHER and model is None:
            await self._world.circus.remove(notes.watcher_name(step.model_id), timeout_s=10.0)
        elif step.act is Act.BRING_UP and model is not None:
            self._world.journal.add("watcher_vanished", step.model_id)
            self._keeper.restore(model)
        elif step.act is Act.MARK_STOPPED and model is not None and step.model_id in self._stopped_before:
            # Only when seen twice: between the stop and the start of a `circusctl restart` it looks the same.
            self._keeper.fail(model, stopped_by_operator(model), Event.GAVE_UP)

    async def _relieve(self) -> None:
        now = time.monotonic()
        candidates = [views.candidate(model, now) for model in self._world.models if model.state is State.READY]
        memories = self._world.memory()
        cache_bytes = await cache_ram_bytes(self._world) if self._pressure.is_high(memories) else 0
        relief = self._pressure.next_relief(memories, candidates, cache_bytes)
        if relief is None:
            return
        self._world.journal.add("memory_relief", getattr(relief, "model_id", ""), what=type(relief).__name__)
        if isinstance(relief, placement.ShrinkCache):
            await self._world.cache.call("shrink", {"target_bytes": relief.target_bytes})
        elif isinstance(relief, placement.EvictModel):
            await evict(self._world, self._world.models.get(relief.model_id))
        else:
            await self._keeper.let_go(self._world.models.get(relief.model_id), "memory")

    async def _unload_unused(self) -> None:
        now = time.monotonic()
        candidates = [views.candidate(model, now) for model in self._world.models if model.state is State.READY]
        for model_id in placement.unused(candidates):
            await self._keeper.let_go(self._world.models.get(model_id), "unused")


def stopped_by_operator(model: Model) -> ModelFailed:
    """The error of a model whose watcher was stopped with circusctl."""
    return ModelFailed(
        f"model {model.model_id!r} was stopped in the supervisor; `erllama restart {model.model_id}` starts it"
    )


def hang(model: Model, beat: tuple[float, float], now: float) -> str:
    """Why a worker counts as hung; empty when it does not.

    Args:
        beat: how long its engine has made no progress while it has work, and how long it may, seconds.
    """
    busy_for_s, limit_s = beat
    if model.state is State.READY and busy_for_s > limit_s:
        return f"hung: no progress for {busy_for_s:.0f} s (limit {limit_s:.0f} s)"
    loading = model.state in (State.LOADING, State.RESTARTING) and model.pid
    if loading and now - model.process_since > model.config.load_timeout_s:
        return f"hung: not loaded within load_timeout_s ({model.config.load_timeout_s:g} s)"
    return ""
