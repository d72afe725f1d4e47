"""Memory as the controller asks for it: what the cache holds, and room for a load before it starts."""

import time
from collections.abc import Awaitable, Callable

from erllama_host.config import ModelConfig
from erllama_host.controller import views
from erllama_host.controller.lifecycle import Model, State
from erllama_host.controller.placement import Memory, room_for
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, NoMemory

ASK_CACHE_S = 1.0


async def cache_ram_bytes(world: World) -> int:
    """Shared memory the cache holds; 0 while the daemon is away."""
    try:
        tiers = (await world.cache.call("stats", timeout_s=ASK_CACHE_S)).get("tiers", {})
    except ErllamaError:
        return 0
    return sum(int(tier.get("used_bytes", 0)) for tier in tiers.values() if tier.get("kind") != "disk")


async def make_room(world: World, config: ModelConfig, let_go: Callable[[Model, str], Awaitable[None]]) -> None:
    """See that a load fits, by what it took the last time (or the size of its file); let cached rows and idle models go for it.

    Raises:
        NoMemory: it would not fit even then; nothing has been let go.
    """
    needed = world.footprints.needed_bytes(config)
    memory = next((each for each in world.memory() if each.name == "ram"), None)
    if memory is None or not needed:
        return
    cache_bytes = await cache_ram_bytes(world)
    now = time.monotonic()
    serving = [model for model in world.models if model.state is State.READY]
    room = room_for(needed, memory, cache_bytes, [(views.candidate(each, now), _bytes_of(each)) for each in serving])
    if room is None:
        raise _no_memory(config, needed, memory)
    if room.shrink_bytes:
        await world.cache.call("shrink", {"target_bytes": cache_bytes - room.shrink_bytes})
    for model in serving:
        if model.model_id in room.models:
            await let_go(model, "room for another model")


def _bytes_of(model: Model) -> int:
    return model.info.resident_bytes if model.info is not None else 0


def _no_memory(config: ModelConfig, needed: int, memory: Memory) -> NoMemory:
    return NoMemory(
        f"{config.path} needs about {needed >> 20} MiB, {memory.free_bytes >> 20} MiB are free, and letting idle things go "
        "would not be enough",
        needed_bytes=needed,
        free_bytes=memory.free_bytes,
    )
