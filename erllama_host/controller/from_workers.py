"""What workers say to the controller: hello, progress, ready, failed, beats."""

import time
from collections.abc import Callable

import msgspec

from erllama_host.config import SpecAdapter
from erllama_host.controller.ends import address_space_hint
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Event, Model, State
from erllama_host.controller.links import Link
from erllama_host.controller.watch import Heartbeats
from erllama_host.controller.worker_calls import send_to_worker
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, from_wire
from erllama_host.ids import new_ref
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body
from erllama_host.protocol.calls import LoadProgress, ModelInfo
from erllama_host.protocol.link import WorkerBeat, WorkerFailed, WorkerHello, WorkerProgress, WorkerReady


class FromWorkers:
    """Handles link messages; the states it changes are the keeper's."""

    def __init__(
        self, world: World, keeper: Keeper, heartbeats: Heartbeats, on_progress: Callable[[LoadProgress], None]
    ) -> None:
        self._world = world
        self._keeper = keeper
        self._heartbeats = heartbeats
        self._on_progress = on_progress
        self._handlers: dict[str, Callable[[Link, Model, bytes], None]] = {
            "w.progress": self._progress,
            "w.ready": self._ready,
            "w.failed": self._failed,
            "w.beat": self._beat,
        }

    def take(self, routing: bytes, envelope: Envelope, body: bytes) -> None:
        """One link message; what cannot be read is logged and dropped."""
        try:
            if envelope.kind == "w.hello":
                self._hello(routing, decode_body("w.hello", body, WorkerHello))
                return
            link = self._world.links.of_routing(routing)
            model = self._world.models.find(link.model_id) if link is not None else None
            if link is None or model is None:
                # This controller is younger than the worker: it has to introduce itself.
                send_to_worker(self._world, routing, "c.hello", new_ref(), envelope.model, b"")
                return
            self._heartbeats.heard(model.model_id, time.monotonic())
            handler = self._handlers.get(envelope.kind)
            if handler is not None:
                handler(link, model, body)
        except ErllamaError as error:
            self._world.log.rate_limited("bad_link_message", kind=envelope.kind, error=error.message)

    def _hello(self, routing: bytes, hello: WorkerHello) -> None:
        model = self._world.models.find(hello.model_id)
        if model is None or hello.protocol != PROTOCOL_VERSION or hello.load_id not in ("", model.load_id):
            self._world.log.warning("stranger", model=hello.model_id, worker=hello.pid, load_id=hello.load_id)
            if model is not None:
                self._world.links.fence(routing)
            return
        if model.state in (State.STOPPING, State.AWAY):
            return
        before = self._world.links.of_model(hello.model_id)
        link = self._world.links.hello(routing, hello)
        if link is None:
            self._world.log.warning("fenced", model=hello.model_id, worker=hello.pid, incarnation=hello.incarnation)
            self._send_away(routing, hello.model_id)
            return
        if before is not None and before.routing != routing:
            self._send_away(before.routing, hello.model_id)
        self._heartbeats.heard(model.model_id, time.monotonic())
        self._keeper.watch(model, hello.pid)
        younger = model.incarnation != hello.incarnation
        model.incarnation = hello.incarnation
        if hello.phase == "ready":
            self._is_ready(model, hello.info, hello.incarnation)
        elif younger:
            self._keeper.apply(model, Event.HELLO)

    def _send_away(self, routing: bytes, model_id: str) -> None:
        """Tell a worker that a younger one serves. Most are dead already, and then nobody is told."""
        send_to_worker(self._world, routing, "c.fence", new_ref(), model_id, b"")

    def _progress(self, link: Link, model: Model, body: bytes) -> None:
        told = decode_body("w.progress", body, WorkerProgress)
        self._on_progress(
            LoadProgress(
                model_id=model.model_id,
                phase=told.phase,
                fraction=told.fraction,
                loaded_bytes=told.loaded_bytes,
                total_bytes=told.total_bytes,
            )
        )

    def _ready(self, link: Link, model: Model, body: bytes) -> None:
        self._is_ready(model, decode_body("w.ready", body, WorkerReady).info, link.incarnation)

    def _failed(self, link: Link, model: Model, body: bytes) -> None:
        told = decode_body("w.failed", body, WorkerFailed)
        hint = address_space_hint(model.config.address_space_bytes, told.message)
        error = from_wire(told.code, told.message + hint, told.details)
        model.last_failure = error.message
        self._keeper.fail(model, error)

    def _beat(self, link: Link, model: Model, body: bytes) -> None:
        beat = link.beat = decode_body("w.beat", body, WorkerBeat)
        if beat.info is not None:
            self._learn(model, beat.info)
        if model.info is not None:
            model.info = msgspec.structs.replace(model.info, status=beat.status)

    def _is_ready(self, model: Model, info: ModelInfo | None, incarnation: str) -> None:
        if info is not None:
            self._learn(model, info)
        self._keeper.ready(model, incarnation)

    def _learn(self, model: Model, info: ModelInfo) -> None:
        """Take what a worker says of itself; adapters that came or went must be there after a respawn as well."""
        model.info = info
        adapters = [SpecAdapter(handle=each.handle, path=each.path, scale=each.scale) for each in info.adapters]
        if adapters != model.adapters and model.state is State.READY:
            model.adapters = adapters
            self._keeper.spawn(self._keeper.remember(model))
