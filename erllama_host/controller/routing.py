"""Where every message goes: by its envelope alone, bodies unread, no table of requests.

Client to model: forwarded to the worker with the client's peer in the envelope. Worker to client: brought to the peer of the
envelope. What is for the controller itself goes to its handlers. Order between one client and one worker is kept.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from erllama_host.config import Config
from erllama_host.controller.front import Request
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Model, State, refusal, shown_status
from erllama_host.controller.world import World
from erllama_host.errors import (
    ErllamaError,
    Forbidden,
    HostUnavailable,
    InvalidRequest,
    ModelLoading,
    ModelNotLoaded,
)
from erllama_host.ids import model_of
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, decode_envelope, encode_envelope
from erllama_host.protocol.calls import LoadAdapter, ModelStatus
from erllama_host.protocol.kinds import HOST_KINDS, LINK_KINDS, MODEL_KINDS
from erllama_host.transport.paths import check_allowed_path

SILENT = frozenset({"cancel", "credit"})
"""Kinds that are never answered, so not with an error either."""
ASKS_FOR_WORK = frozenset({"infer", "embed", "verify", "draft"})
"""Kinds that are refused while the host goes down."""
SIGNS_OF_USE = frozenset({"infer", "resume", "credit", "embed", "tokenize", "apply_chat_template", "verify", "draft"})


@dataclass(frozen=True)
class Handlers:
    """Who gets what is for the controller itself."""

    host_call: Callable[[Request], None]
    link_message: Callable[[bytes, Envelope, bytes], None]


class Router:
    """No state of its own: `world.models` and `world.links` say where things are."""

    def __init__(self, world: World, keeper: Keeper, handlers: Handlers) -> None:
        self._world = world
        self._keeper = keeper
        self._handlers = handlers

    def on_request(self, request: Request) -> None:
        """A message of a client."""
        kind = request.envelope.kind
        self._world.count("requests")
        try:
            check_role(request)
            if kind in MODEL_KINDS:
                self._to_worker(request)
            elif kind in HOST_KINDS:
                self._handlers.host_call(request)
            else:
                raise InvalidRequest(f"there is no kind {kind!r}", field="kind")
        except ErllamaError as error:
            if kind not in SILENT:
                self._world.front.refuse(request, error)

    def on_worker_message(self, frames: list[bytes]) -> None:
        """A message of a worker: [routing, envelope, body]."""
        routing = frames[0]
        if self._world.links.is_fenced(routing):
            return
        try:
            if len(frames) != 3:
                raise InvalidRequest(f"{len(frames)} frames instead of 3")
            envelope = decode_envelope(frames[1])
        except ErllamaError as error:
            self._world.log.rate_limited("bad_worker_message", error=error.message)
            return
        if envelope.kind in LINK_KINDS:
            self._handlers.link_message(routing, envelope, frames[2])
        elif envelope.peer:
            self._world.front.send(envelope.peer, envelope.kind, envelope.ref, frames[2], envelope.model)
        else:
            self._world.asks.answered(envelope.ref, envelope.kind, frames[2])

    def _to_worker(self, request: Request) -> None:
        envelope = request.envelope
        model = self._world.models.find(envelope.model)
        if model is None:
            raise ModelNotLoaded(f"no model {envelope.model!r} is loaded; `erllama ps` lists those that are")
        if model_of(envelope.ref) != envelope.model:
            raise InvalidRequest(f"ref {envelope.ref!r} does not belong to model {envelope.model!r}", field="ref")
        self._world.links.saw(envelope.model, request.peer)
        if envelope.kind in SIGNS_OF_USE:
            model.last_used = time.monotonic()
        if self._answered_here(request, model):
            return
        if request.remote and envelope.kind == "load_adapter":
            check_adapter_path(request, self._world.config)
        self._forward(request, model)

    def _answered_here(self, request: Request, model: Model) -> bool:
        """Answer for a model that does not serve; False when it does."""
        kind = request.envelope.kind
        if self._world.draining and kind in ASKS_FOR_WORK:
            raise HostUnavailable("the host is going down", retry_after_s=1.0)
        refused = refusal(model, time.monotonic())
        if refused is None:
            return False
        if kind == "status":
            self._world.front.reply(request, ModelStatus(status=shown_status(model)))
            return True
        if model.state is State.AWAY and kind in SIGNS_OF_USE and kind != "credit":
            self._keeper.want(model)
        raise refused

    def _forward(self, request: Request, model: Model) -> None:
        old = request.envelope
        link = self._world.links.of_model(model.model_id)
        envelope = Envelope(PROTOCOL_VERSION, old.kind, old.ref, old.model, old.deadline_ms, request.peer)
        frames = (link.routing, encode_envelope(envelope), request.body) if link is not None else ()
        if link is None or not self._world.workers.send(frames):
            raise ModelLoading(f"the worker of {model.model_id!r} is not connected just now", retry_after_s=0.1)


def check_role(request: Request) -> None:
    """Raises Forbidden when the client may not send this kind."""
    if request.role == "admin":
        return
    kind = HOST_KINDS.get(request.envelope.kind) or MODEL_KINDS.get(request.envelope.kind)
    if kind is not None and kind.role == "admin":
        raise Forbidden(f"{request.envelope.kind} needs a key of role admin")


def check_adapter_path(request: Request, config: Config) -> None:
    """Raises Forbidden when a remote client names an adapter outside of `model_dirs`."""
    body = decode_body("load_adapter", request.body, LoadAdapter)
    check_allowed_path(body.path, config.host.model_dirs)
