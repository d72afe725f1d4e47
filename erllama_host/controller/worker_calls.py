"""What the controller says to workers on its own behalf."""

from typing import Any, TypeVar

import msgspec

from erllama_host.controller.lifecycle import Model
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, HostUnavailable
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, encode_envelope
from erllama_host.protocol.calls import Evict, Evicted, ModelInfo, Saved
from erllama_host.protocol.envelope import encode_body
from erllama_host.protocol.inference import Moved
from erllama_host.protocol.link import Park

INFO_TIMEOUT_S = 0.5
PARK_MARGIN_S = 2.0
EVICT_MARGIN_S = 5.0

T = TypeVar("T")


def send_to_worker(world: World, routing: bytes, kind: str, ref: str, model_id: str, body: bytes) -> bool:
    """Send a message of our own; False when the worker cannot take it."""
    return world.workers.send((routing, encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref, model_id)), body))


async def ask_worker(world: World, model: Model, kind: str, body: Any, answer: type[T], timeout_s: float) -> T:
    """Call a worker.

    Raises:
        HostUnavailable, Timeout, or what the worker answers.
    """
    link = world.links.of_model(model.model_id)
    if link is None:
        raise HostUnavailable(f"the worker of {model.model_id!r} is not connected")
    routing, data = link.routing, encode_body(body)
    reply = await world.asks.ask(
        lambda ref: send_to_worker(world, routing, kind, ref, model.model_id, data),
        timeout_s,
        f"the worker of {model.model_id!r}",
        group=model.model_id,
    )
    return decode_body(kind, reply, answer)


async def fresh_info(world: World, model: Model) -> ModelInfo | None:
    """What the worker says of itself now; what it last said when it does not answer at once."""
    try:
        model.info = await ask_worker(world, model, "worker_info", None, ModelInfo, INFO_TIMEOUT_S)
    except ErllamaError as error:
        world.log.debug("worker_info_missed", model=model.model_id, error=error.message)
    return model.info


async def park(world: World, model: Model, reason: str, finish_s: float) -> bool:
    """Let a worker end its requests and save; False when it did not answer in time (it is then hung, or dead)."""
    save_s = model.config.evict_save_timeout_s
    order = Park(reason=reason, finish_s=finish_s, save_s=save_s)
    try:
        await ask_worker(world, model, "c.park", order, Saved, finish_s + save_s + PARK_MARGIN_S)
    except ErllamaError as error:
        world.log.warning("park_failed", model=model.model_id, error=error.message)
        return False
    return True


async def evict(world: World, model: Model) -> Evicted:
    """Let a worker save and give its context back."""
    timeout_s = model.config.evict_save_timeout_s + EVICT_MARGIN_S
    return await ask_worker(world, model, "evict", Evict(), Evicted, timeout_s)


def tell_moved(world: World, model_id: str, incarnation: str) -> None:
    """Hint to clients that the worker of a model has ended (no incarnation) or that another serves; forget those that are gone."""
    body = msgspec.msgpack.encode(Moved(incarnation=incarnation))
    for peer in world.links.peers(model_id):
        if not world.front.send(peer, "moved", "", body, model_id):
            world.links.forget_peer(model_id, peer)
