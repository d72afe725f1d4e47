"""The flows of models: load, unload, restart, let go and fetch back. The only writer of states and of the desired state.

One flow at a time per model (`_locks`); flows wait for circus and for workers, messages and deaths do not wait for flows. Whoever
waits for a model waits for its *outcome*, a future that the worker's readiness or a failure resolves.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from erllama_host.config import POLICY_KEYS_WITHOUT_EFFECT, ModelConfig, longest_stop_s
from erllama_host.controller import specs, views
from erllama_host.controller.desired import Wanted
from erllama_host.controller.lifecycle import SHOULD_RUN, Event, Model, State
from erllama_host.controller.old_logs import remove_old_logs
from erllama_host.controller.placement import is_idle
from erllama_host.controller.room import make_room
from erllama_host.controller.watch import ProcessWatch
from erllama_host.controller.worker_calls import park, tell_moved
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, InternalError, ModelNotLoaded
from erllama_host.ids import auto_model_id, check_model_id
from erllama_host.supervisor import notes

CACHE_MARGIN_S = 5.0
DEFAULT_CACHE_STOP_S = 40.0
"""As in circus.ini."""


class Keeper:
    """See the module. `on_death(model, pid)`, for the ends of watched processes, is deaths.py's."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._outcomes: dict[str, asyncio.Future[None]] = {}
        self._watches: dict[str, ProcessWatch] = {}
        self._slots = asyncio.Semaphore(world.config.host.load_at_once)
        self._starting: set[str] = set()
        self._persisting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_death: Callable[[Model, int], None] = lambda model, pid: None

    # ---- asked for by clients ------------------------------------------------------------------------------------

    async def load(self, model_id: str | None, config: ModelConfig, request_id: str) -> Model:
        """Begin to load; a repeated `request_id` finds the load it began before.

        Raises:
            AlreadyLoaded, InvalidRequest, ModelLoadFailed, NoMemory.
        """
        load_id = request_id or secrets.token_hex(8)
        async with self._lock(f"load {load_id}"):
            known = self._world.models.by_load_id(load_id)
            if known is not None:
                return known
            if model_id is not None:
                self._world.models.check_free(model_id)  # before anything is let go for it
            await asyncio.to_thread(specs.check_model_file, config)
            await make_room(self._world, config, self.let_go)
            if model_id is None:
                model_id = await self._auto_id()
            return self.begin(Model(check_model_id(model_id), config, load_id))

    def begin(self, model: Model) -> Model:
        """Take up a model and start its worker."""
        self._world.models.add(model, time.monotonic())
        without_effect = [key for key in POLICY_KEYS_WITHOUT_EFFECT if getattr(model.config.policy, key) is not None]
        if without_effect:
            self._world.log.warning("policy_keys_without_effect", model=model.model_id, keys=without_effect)
        self._world.journal.add("loading", model.model_id, path=model.config.path)
        self._expect(model)
        self.spawn(self._bring_up(model))
        return model

    def adopt(self, model: Model) -> Model:
        """Take up a model whose worker runs already; it will say hello."""
        self._world.models.add(model, time.monotonic())
        self._expect(model)
        return model

    async def outcome(self, model: Model) -> None:
        """Wait until the model serves; raises why it does not."""
        future = self._outcomes.get(model.model_id)
        if future is not None:
            await asyncio.shield(future)
        elif model.failure is not None:
            raise model.failure

    async def unload(self, model_id: str) -> None:
        """Save, end the worker, forget the model. Returns when the id is free.

        Raises:
            ModelNotLoaded
        """
        model = self._world.models.get(model_id)
        serving = model.state is State.READY
        self.apply(model, Event.STOP)
        self._settle(model, ModelNotLoaded(f"model {model_id!r} was unloaded"))
        async with self._lock(model_id):
            if self._world.models.find(model_id) is not model:
                return
            await self._take_down(model, park_first=serving)
            await self._persist(lambda: self._world.desired.forget(model_id, model.source == "config"))
            self._remove(model)

    async def restart(self, model_id: str) -> Model:
        """Restart the worker, also of a failed model. Returns when that is under way.

        Raises:
            ModelNotLoaded: no such id, or it is being unloaded.
        """
        model = self._world.models.get(model_id)
        if model.state is State.STOPPING:
            raise ModelNotLoaded(f"model {model_id!r} is being unloaded")
        running = model.state in (State.READY, State.RESTARTING)
        self.apply(model, Event.RESTART)
        self._expect(model)
        self._world.journal.add("restart_asked", model_id)
        self.spawn(self._bring_up(model, restart=running))
        return model

    def restore(self, model: Model) -> None:
        """The watcher of a model has vanished from circus: make another. The end of its worker is told, and counted, apart."""
        self.apply(model, Event.RESTART)
        self._expect(model)
        self.spawn(self._bring_up(model))

    def want(self, model: Model) -> None:
        """A request has come for a model that is away."""
        if self.apply(model, Event.WANTED):
            self._expect(model)
            self.spawn(self._bring_up(model))

    async def let_go(self, model: Model, why: str) -> None:
        """Unload a model that will be loaded again by the next request; not one that is used again by the time it is its turn.

        Several are chosen at a time, and to end one takes as long as its save.
        """
        async with self._lock(model.model_id):
            if not is_idle(views.candidate(model, time.monotonic())) or not self.apply(model, Event.LET_GO):
                return
            self._world.journal.add("let_go", model.model_id, reason=why)
            await self._take_down(model, park_first=True)

    # ---- told by workers and by their ends -----------------------------------------------------------------------

    def ready(self, model: Model, incarnation: str) -> None:
        """The worker serves."""
        first = not model.stays
        notes.mark_ready(self._world.paths.run, notes.watcher_name(model.model_id), model.pid)
        if self.apply(model, Event.READY):
            self._world.journal.add("ready", model.model_id, pid=model.pid, first=first, load_s=round(model.load_s, 3))
            tell_moved(self._world, model.model_id, incarnation)
            self.spawn(self._confirm(model))

    async def remember(self, model: Model) -> None:
        """Write down that the model should exist, and what its next worker is to be started from.

        A disk that does not take it is no reason not to serve; that the model may be missing after a crash is said.
        """
        if self._world.models.find(model.model_id) is not model or model.state is State.STOPPING:
            return
        desired = self._world.desired
        try:
            if model.source == "config":
                await self._persist(lambda: desired.want_configured(model.model_id, model.adapters))
            else:
                wanted = Wanted(config=model.config, adapters=model.adapters)
                await self._persist(lambda: desired.want(model.model_id, wanted))
            await self._write_spec(model)
        except InternalError as error:
            self._world.log.error("not_written_down", model=model.model_id, error=error.message)
            self._world.journal.add("not_written_down", model.model_id, error=error.message)

    def fail(self, model: Model, error: ErllamaError, event: Event = Event.LOAD_FAILED) -> None:
        """The model does not serve and will not by itself. One that nobody but its loader knows is forgotten."""
        if not self.apply(model, event):
            return
        model.failure = error
        error.details.setdefault("last_log_lines", model.last_log_lines)
        name = "gave_up" if event is Event.GAVE_UP else "failed"
        self._world.journal.add(name, model.model_id, code=error.code, message=error.message)
        self._world.log.error("model_failed", model=model.model_id, code=error.code, message=error.message)
        tell_moved(self._world, model.model_id, "")  # who waits for it asks again, and gets the error
        if model.stays:
            self._settle(model, error)
        else:
            self.spawn(self._discard(model, error))

    def watch(self, model: Model, pid: int) -> None:
        """`pid` is the worker of `model` from now on."""
        known = self._watches.get(model.model_id)
        if pid <= 0 or (known is not None and known.pid == pid):
            return
        if known is not None:
            known.close()
        model.pid, model.process_since, model.kill_reason = pid, time.monotonic(), ""
        model.seen_ends.discard(pid)  # pids come back
        self._watches[model.model_id] = ProcessWatch(pid, lambda ended: self._ended(model, ended))

    def kill(self, model: Model, reason: str) -> None:
        """SIGKILL to the worker; `reason` is what people will read."""
        watch = self._watches.get(model.model_id)
        if watch is not None and not model.kill_reason:
            model.kill_reason = reason
            self._world.journal.add("killed", model.model_id, pid=watch.pid, reason=reason)
            watch.kill()

    def apply(self, model: Model, event: Event) -> bool:
        """Let an event happen; whether the state changed."""
        changed = self._world.models.apply(model, event, time.monotonic())
        if changed:
            self._world.log.info("model_state", model=model.model_id, state=model.state.value, why=event.name.lower())
        return changed

    def is_busy(self, model: Model) -> bool:
        """Whether a flow is under way, so that what circus shows may be passing."""
        return model.model_id in self._starting or self._lock(model.model_id).locked()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a flow in the background; what it does not expect ends up in the log, and only there."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    async def close(self) -> None:
        """End all flows."""
        for watch in self._watches.values():
            watch.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- inside --------------------------------------------------------------------------------------------------

    async def _bring_up(self, model: Model, restart: bool = False) -> None:
        """Start the worker, and hold a load slot until the outcome is known.

        A restart needs none: the model is refused already, and what it takes is what the one before gives back.
        """
        self._starting.add(model.model_id)
        async with contextlib.nullcontext() if restart else self._slots:
            try:
                async with self._lock(model.model_id):
                    if model.state not in SHOULD_RUN or self._world.models.find(model.model_id) is not model:
                        return
                    await self._start(model, restart)
            except ErllamaError as error:
                self.fail(model, error)
            except Exception:
                # A bug of ours: raised for the log, but nobody must wait for this model for ever.
                self.fail(
                    model, InternalError(f"model {model.model_id!r} could not be started; see the controller's log")
                )
                raise
            finally:
                self._starting.discard(model.model_id)
            with contextlib.suppress(ErllamaError):
                await self.outcome(model)

    async def _start(self, model: Model, restart: bool) -> None:
        world, watcher = self._world, notes.watcher_name(model.model_id)
        await self._write_spec(model)
        if restart and watcher in await world.circus.statuses():
            await world.circus.restart_watcher(watcher, model.config.stop_s + CACHE_MARGIN_S)
            return
        notes.forget_exits(world.paths.run, watcher)
        cache_stop_s = await asyncio.to_thread(longest_stop_s, world.paths) + CACHE_MARGIN_S
        if cache_stop_s > DEFAULT_CACHE_STOP_S:
            await world.circus.set_graceful_timeout("cache", cache_stop_s)
        options = specs.watcher_options(world.paths, world.config, model)
        await world.circus.add(watcher, specs.watcher_command(model.model_id), options)
        pids = await world.circus.start_watcher(watcher)
        if pids:
            self.watch(model, pids[-1])
        elif not notes.read_exits(world.paths.run, watcher):
            raise InternalError(f"the worker of {model.model_id!r} could not be started; see {world.paths.logs}")

    async def _take_down(self, model: Model, park_first: bool) -> None:
        """End the worker and remove its watcher; one that does not react is killed first, or circus would wait for it."""
        watcher = notes.watcher_name(model.model_id)
        connected = self._world.links.of_model(model.model_id) is not None
        if not (park_first and connected and await park(self._world, model, "unload", 0.0)):
            watch = self._watches.get(model.model_id)
            if watch is not None:
                watch.kill()
        self._world.links.drop(model.model_id)
        await self._world.circus.remove(watcher, model.config.stop_s + CACHE_MARGIN_S)
        await self._forget_worker(model)

    async def _forget_worker(self, model: Model) -> None:
        watch = self._watches.pop(model.model_id, None)
        if watch is not None:
            watch.close()
        spec, failure = self._world.paths.spec_file(model.model_id), self._world.paths.failure_file(model.model_id)
        for file in (spec, failure, failure.with_suffix(".tmp")):  # a worker may have been killed while it wrote that
            await self._persist(partial(file.unlink, missing_ok=True))
        notes.forget_exits(self._world.paths.run, notes.watcher_name(model.model_id))
        model.pid, model.info = 0, None

    async def _discard(self, model: Model, error: ErllamaError) -> None:
        """Forget a model that could not be loaded, and only then tell: the id is free for the next attempt."""
        try:
            async with self._lock(model.model_id):
                await self._take_down(model, park_first=False)
                self._remove(model)
        finally:
            self._settle(model, error)

    def _remove(self, model: Model) -> None:
        self._world.models.remove(model.model_id)
        self._world.links.forget_peers(model.model_id)
        self._world.journal.add("unloaded", model.model_id)
        present = {each.model_id for each in self._world.models}
        self.spawn(self._persist(lambda: remove_old_logs(self._world.paths.logs, present)))

    async def _confirm(self, model: Model) -> None:
        """The first readiness is written down before anybody is told."""
        await self.remember(model)
        self._settle(model, None)
        resident = model.info.resident_bytes if model.info is not None else 0
        try:
            await self._persist(lambda: self._world.footprints.remember(model.config, resident))
        except InternalError as error:
            self._world.log.rate_limited("footprint_not_written", error=error.message)

    def _ended(self, model: Model, pid: int) -> None:
        self._watches.pop(model.model_id, None)
        self.on_death(model, pid)

    async def _auto_id(self) -> str:
        """The next automatic id; one that a client has taken by name is passed over."""
        numbers: list[int] = []
        while not numbers or self._world.models.find(auto_model_id(numbers[-1])) is not None:
            await self._persist(lambda: numbers.append(self._world.desired.take_auto_number()))
        return auto_model_id(numbers[-1])

    async def _write_spec(self, model: Model) -> None:
        """Not for a model that is being unloaded meanwhile: its file would bring it back with the next controller."""

        def write() -> None:
            if model.state in SHOULD_RUN:
                specs.write_spec(self._world.paths, self._world.config, model)

        await self._persist(write)

    async def _persist(self, change: Callable[[], None]) -> None:
        """Write one of our files; one at a time, off the loop, since it waits for the disk.

        Raises:
            InternalError: the disk does not take it.
        """
        async with self._persisting:
            try:
                await asyncio.to_thread(change)
            except OSError as error:
                raise InternalError(f"the host cannot write its files: {error}") from error

    def _lock(self, name: str) -> asyncio.Lock:
        """The lock of a model (or of a load request); it exists for as long as somebody holds or wants it."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def _expect(self, model: Model) -> None:
        """Whoever asks for the outcome from now on waits for a new one."""
        known = self._outcomes.get(model.model_id)
        if known is None or known.done():
            self._outcomes[model.model_id] = asyncio.get_running_loop().create_future()

    def _settle(self, model: Model, error: ErllamaError | None) -> None:
        future = self._outcomes.pop(model.model_id, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # marks it as seen: often nobody waits

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._world.log.error("flow_failed", error=repr(task.exception()))
