"""The controller as a whole: makes the parts, opens the sockets, runs until it is told to end. No decisions of its own."""

import asyncio
import os
import signal
import time

import zmq

from erllama_host.config import Config, Paths
from erllama_host.controller.asks import Asks
from erllama_host.controller.bring_back import bring_back
from erllama_host.controller.cache_client import CacheClient
from erllama_host.controller.calls import HostCalls
from erllama_host.controller.circus_client import CircusClient
from erllama_host.controller.deaths import Deaths
from erllama_host.controller.desired import DesiredFile
from erllama_host.controller.footprints import Footprints
from erllama_host.controller.from_workers import FromWorkers
from erllama_host.controller.front import Front, Request
from erllama_host.controller.journal import Journal
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Models
from erllama_host.controller.links import Links
from erllama_host.controller.memory import memory_source
from erllama_host.controller.routing import Handlers, Router
from erllama_host.controller.upkeep import Upkeep
from erllama_host.controller.watch import Heartbeats
from erllama_host.controller.world import World
from erllama_host.ids import new_incarnation
from erllama_host.observability import Log
from erllama_host.supervisor import notes
from erllama_host.transport.curve import Authenticator, open_remote
from erllama_host.transport.pump import Pump
from erllama_host.transport.sockets import router

Context = zmq.Context[zmq.Socket[bytes]]
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Controller:
    """One life of the controller."""

    def __init__(self, paths: Paths, config: Config, log: Log) -> None:
        """Make the parts; needs a running loop."""
        self._context: Context = zmq.Context()
        self._authenticator: Authenticator | None = None
        self._up_id = os.environ.get("ERLLAMA_UP_ID", "")
        heartbeats = Heartbeats(config.host.heartbeat_timeout_s)
        self._world = self._make_world(paths, config, log)
        self._keeper = Keeper(self._world)
        self._deaths = Deaths(self._world, self._keeper)
        self._calls = HostCalls(self._world, self._keeper)
        from_workers = FromWorkers(self._world, self._keeper, heartbeats, self._calls.progress)
        self._router = Router(self._world, self._keeper, Handlers(self._calls.take, from_workers.take))
        self._upkeep = Upkeep(self._world, self._keeper, self._deaths, heartbeats)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        world = self._world
        ended = asyncio.Event()
        for sig in ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(sig, ended.set)
        self._load_desired()
        world.circus.start()
        world.cache.start()
        await bring_back(world, self._keeper)
        # Not before the models are known: workers would be strangers, and their watchers unwanted.
        world.workers.start()
        self._upkeep.start()
        self._open_front()
        notes.mark_ready(world.paths.run, "controller", os.getpid())
        world.journal.add("controller_started", pid=os.getpid(), incarnation=world.incarnation)
        world.log.info("serving", endpoint=world.paths.ipc("clients.sock"), incarnation=world.incarnation)
        await self._until(ended)
        # A second one, e.g. of the next thread of a dying parent, must not end an orderly leave by its default action.
        for sig in ENDING_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(sig)
            signal.signal(sig, signal.SIG_IGN)
        await self._close()

    async def _until(self, ended: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(ended.wait()), asyncio.ensure_future(self._upkeep.failure())]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            task.result()

    def _make_world(self, paths: Paths, config: Config, log: Log) -> World:
        workers = router(self._context)
        workers.bind(paths.ipc("workers.sock"))
        return World(
            paths=paths,
            config=config,
            log=log,
            incarnation=new_incarnation(time.time_ns()),
            started_at=time.time(),
            models=Models(),
            links=Links(),
            desired=DesiredFile(paths.models_file),
            footprints=Footprints(paths.home / "footprints.json"),
            journal=Journal(paths.home / "events.jsonl", config.host.event_limit, log),
            circus=CircusClient(
                self._context, paths.ipc("circus.sock"), paths.ipc("circus-events.sock"), self._on_hint
            ),
            cache=CacheClient(self._context, paths.ipc("cache.sock")),
            front=Front(log, self._on_request),
            workers=Pump(workers, self._on_worker_message),
            asks=Asks(),
            memory=memory_source(config.host.memory_file),
        )

    # The parts of the world come first; these reach the parts that are made from it.

    def _on_request(self, request: Request) -> None:
        self._router.on_request(request)

    def _on_worker_message(self, frames: list[bytes]) -> None:
        self._router.on_worker_message(frames)

    def _on_hint(self, watcher: str, topic: str) -> None:
        self._deaths.on_hint(watcher, topic)

    def _load_desired(self) -> None:
        aside = self._world.desired.load(self._up_id)
        if aside is not None:
            self._world.log.error("desired_state_damaged", kept_as=str(aside))
            self._world.journal.add("desired_state_damaged", kept_as=str(aside))

    def _open_front(self) -> None:
        """Last of all: who connects finds a host that knows its models. Whatever can fail comes first: once the local socket
        answers, `up` takes the host for started.
        """
        world = self._world
        if world.config.remote.listen is not None:
            self._authenticator = open_remote(
                self._context, world.config, world.paths, world.log, world.front.open_remote
            )
        local = router(self._context, world.config.host.max_clients_pending)
        local.bind(world.paths.ipc("clients.sock"))
        world.front.open_local(local)

    async def _close(self) -> None:
        await self._upkeep.close()
        await self._calls.close()
        await self._keeper.close()
        world = self._world
        for part in (world.front, world.workers, world.circus, world.cache, world.journal):
            part.close()
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.destroy(linger=200)
