"""The calls to the host: one method per kind of `HOST_KINDS`, each in its own task, all bounded."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import erllama_host
from erllama_host.config import ModelConfig, parse_model_config
from erllama_host.controller import views
from erllama_host.controller.cache_client import CALL_TIMEOUT_S
from erllama_host.controller.front import Request
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Model, State
from erllama_host.controller.worker_calls import fresh_info, park
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, HostUnavailable, InternalError, ModelNotLoaded, QueueFull, Timeout
from erllama_host.ids import check_model_id
from erllama_host.protocol import PROTOCOL_VERSION, calls, decode_body
from erllama_host.protocol.kinds import HOST_KINDS
from erllama_host.transport.paths import check_allowed_path

MAX_CALLS = 1000
COUNTERS_TIMEOUT_S = 1.0


class HostCalls:
    """Answers clients' calls to the host. State: who waits for the progress of which load."""

    def __init__(self, world: World, keeper: Keeper) -> None:
        self._world = world
        self._keeper = keeper
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: dict[str, list[Request]] = {}
        self._methods: dict[str, Callable[[Request, Any], Awaitable[Any]]] = {
            kind: getattr(self, f"_{kind}") for kind in HOST_KINDS
        }

    def take(self, request: Request) -> None:
        """Begin to answer.

        Raises:
            QueueFull: too many calls are open.
        """
        if len(self._tasks) >= MAX_CALLS:
            raise QueueFull(f"{MAX_CALLS} calls to the host are open", retry_after_s=0.5)
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def progress(self, told: calls.LoadProgress) -> None:
        """Tell those who wait for a model how far it is."""
        for request in self._watching.get(told.model_id, ()):
            self._world.front.reply(request, told, "progress")

    async def close(self) -> None:
        """End all open calls."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, request: Request) -> None:
        kind, limit_s = request.envelope.kind, request.envelope.deadline_ms / 1000 or None
        try:
            body = decode_body(kind, request.body, HOST_KINDS[kind].body)
            self._world.front.reply(request, await asyncio.wait_for(self._methods[kind](request, body), limit_s))
        except TimeoutError:
            self._world.front.refuse(request, Timeout(f"{kind}: not done within {limit_s:g} s"))
        except ErllamaError as error:
            self._world.front.refuse(request, error)
        except asyncio.CancelledError:
            self._world.front.refuse(request, HostUnavailable("the host is going down", retry_after_s=1.0))
            raise
        except Exception as error:
            # A bug of ours must not leave the client waiting; it is reported, logged, and raised into the task.
            self._world.log.error("call_failed", kind=kind, ref=request.envelope.ref, error=repr(error))
            self._world.front.refuse(request, InternalError(f"{kind} failed; the controller's log has the details"))
            raise

    # ---- about the host ------------------------------------------------------------------------------------------

    async def _hello(self, request: Request, body: calls.Nothing) -> calls.HostHello:
        world = self._world
        return calls.HostHello(
            version=erllama_host.__version__,
            protocol=PROTOCOL_VERSION,
            instance=world.paths.instance,
            pid=os.getpid(),
            incarnation=world.incarnation,
            started_at=world.started_at,
            home=str(world.paths.home),
            run_dir=str(world.paths.run),
            draining=world.draining,
            cache_available=world.cache_available,
            components=_components(),
        )

    async def _host_status(self, request: Request, body: calls.Nothing) -> calls.HostStatus:
        models = (await self._list_models(request, body)).models
        return calls.HostStatus(
            hello=await self._hello(request, body),
            processes=await views.processes(self._world, models),
            models=models,
            memory=views.memory(self._world.memory()),
        )

    async def _counters(self, request: Request, body: calls.Nothing) -> calls.Counters:
        counters = views.counters(self._world)
        try:
            stats = await self._world.cache.call("stats", timeout_s=COUNTERS_TIMEOUT_S)
            counters |= {
                name: value for name, value in stats.get("counters", {}).items() if isinstance(value, int | float)
            }
            counters["cache_available"] = 1
        except ErllamaError:
            counters["cache_available"] = 0
        return calls.Counters(counters=counters)

    async def _events(self, request: Request, body: calls.Events) -> calls.EventList:
        return await self._world.journal.wait_since(body.since, body.limit, body.wait_ms)

    async def _cache(self, request: Request, body: calls.CacheCall) -> calls.CacheAnswer:
        # To compare the checksums of a tier takes minutes: how long that may be is for the caller to say.
        timeout_s = request.envelope.deadline_ms / 1000 or CALL_TIMEOUT_S
        return calls.CacheAnswer(result=await self._world.cache.call(body.op, body.arguments, timeout_s))

    async def _drain(self, request: Request, body: calls.Drain) -> calls.Ok:
        self._world.draining = True
        self._world.journal.add("draining", timeout_s=body.timeout_s)
        serving = [model for model in self._world.models if model.state is State.READY]
        await asyncio.gather(*(park(self._world, model, "shutdown", body.timeout_s) for model in serving))
        return calls.Ok()

    # ---- about models --------------------------------------------------------------------------------------------

    async def _load_model(self, request: Request, body: calls.LoadModel) -> calls.ModelInfo:
        if self._world.draining:
            raise HostUnavailable("the host is going down", retry_after_s=1.0)
        config = parse_model_config(
            {**body.config, "path": body.path or body.config.get("path", "")}, self._world.config.cache
        )
        if request.remote:
            for path in files_of(config):
                check_allowed_path(path, self._world.config.host.model_dirs)
        model_id = check_model_id(body.model_id) if body.model_id is not None else None
        model = await self._keeper.load(model_id, config, body.request_id)
        return await self._info_when(request, model, body.wait)

    async def _restart(self, request: Request, body: calls.Restart) -> calls.ModelInfo:
        return await self._info_when(request, await self._keeper.restart(body.model_id), body.wait)

    async def _unload(self, request: Request, body: calls.ModelRef) -> calls.Ok:
        await asyncio.shield(self._keeper.unload(body.model_id))
        return calls.Ok()

    async def _list_models(self, request: Request, body: calls.Nothing) -> calls.ModelList:
        shown = [model for model in self._world.models if model.state is not State.STOPPING]
        infos = await asyncio.gather(*map(self._info, shown))
        return calls.ModelList(models=sorted(infos, key=lambda info: info.model_id))

    async def _model_info(self, request: Request, body: calls.ModelRef) -> calls.ModelInfo:
        return await self._info(self._world.models.get(body.model_id))

    async def _models(self, request: Request, body: calls.Nothing) -> calls.WorkerPids:
        models = list(self._world.models)
        pids = await asyncio.gather(*(views.pids(self._world, model) for model in models))
        return calls.WorkerPids(pids={model.model_id: found for model, found in zip(models, pids, strict=True)})

    async def _info(self, model: Model) -> calls.ModelInfo:
        if model.state is State.READY:
            await fresh_info(self._world, model)
        return views.model_info(model, time.monotonic())

    async def _info_when(self, request: Request, model: Model, wait: bool) -> calls.ModelInfo:
        """The model's info, after it serves when `wait`; meanwhile the client is told of the progress."""
        if wait:
            waiting = self._watching.setdefault(model.model_id, [])
            waiting.append(request)
            self._world.front.reply(request, calls.LoadProgress(model_id=model.model_id, phase="starting"), "progress")
            try:
                await self._keeper.outcome(model)
            finally:
                waiting.remove(request)
                if not waiting:
                    self._watching.pop(model.model_id, None)
            if self._world.models.find(model.model_id) is not model:
                raise ModelNotLoaded(f"model {model.model_id!r} was unloaded")
        return await self._info(model)


def files_of(config: ModelConfig) -> list[str]:
    """The files that a load with this configuration opens, or makes."""
    stub = config.stub.crash_once
    return [*([config.path] if config.backend == "llama" else []), *([stub] if stub is not None else [])]


@cache
def _components() -> dict[str, str]:
    """Versions of what the host is built on. Read once: looking them up takes milliseconds, and `hello` is asked often."""
    found = {}
    for package in ("pyzmq", "circus", "llama-cpp-python"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
