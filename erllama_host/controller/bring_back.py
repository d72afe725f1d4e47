"""At start: which models should there be, and which of them run already? Workers live through the death of a controller."""

import secrets

from erllama_host.config import ModelConfig, ModelSpec, SpecAdapter, read_specs
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Model, State
from erllama_host.controller.world import World
from erllama_host.supervisor.notes import read_exits, watcher_name


async def bring_back(world: World, keeper: Keeper) -> None:
    """Adopt what runs, load what is wanted and does not. Higher priority first."""
    statuses = await world.circus.statuses()
    specs = {spec.model_id: spec for spec in read_specs(world.paths)}
    for model in sorted(_wanted(world, specs), key=lambda each: -each.config.priority):
        status = statuses.get(watcher_name(model.model_id))
        if status is not None and not _never_ran(world, model, status):
            await _adopt(world, keeper, model, status)
        elif model.config.lazy and model.source == "config":
            model.state = State.AWAY
            keeper.adopt(model)
        else:
            keeper.begin(model)


def _never_ran(world: World, model: Model, status: str) -> bool:
    """Whether the last controller died between adding the watcher and starting it: one that was stopped later has a note."""
    return status == "stopped" and not read_exits(world.paths.run, watcher_name(model.model_id))


async def _adopt(world: World, keeper: Keeper, model: Model, status: str) -> None:
    """Take up a model that circus has. One that was given up or stopped stays so: its last note is news to us."""
    ended = [note.pid for note in read_exits(world.paths.run, watcher_name(model.model_id))]
    model.seen_ends = set(ended[:-1] if status == "stopped" else ended)
    keeper.adopt(model)
    for pid in await world.circus.pids(watcher_name(model.model_id)):
        keeper.watch(model, pid)


def _wanted(world: World, specs: dict[str, ModelSpec]) -> list[Model]:
    """Models of erllama.toml, those that clients loaded, and loads that were under way when the last controller died."""
    state = world.desired.state
    found: dict[str, Model] = {}
    for model_id, config in world.config.models.items():
        if model_id not in state.unloaded:
            adapters = state.adapters.get(model_id, [])
            found[model_id] = _model(model_id, config, specs, "config", adapters)
    for model_id, wanted in state.models.items():
        if model_id not in found:
            found[model_id] = _model(model_id, wanted.config, specs, "runtime", wanted.adapters)
    for model_id, spec in specs.items():
        if model_id not in found and model_id not in state.unloaded:
            found[model_id] = _model(model_id, spec.config, specs, "runtime", spec.adapters, stays=False)
    return list(found.values())


def _model(
    model_id: str,
    config: ModelConfig,
    specs: dict[str, ModelSpec],
    source: str,
    adapters: list[SpecAdapter],
    stays: bool = True,
) -> Model:
    spec = specs.get(model_id)
    load_id = spec.load_id if spec is not None else secrets.token_hex(8)
    return Model(model_id, config, load_id, source=source, stays=stays, adapters=list(adapters))
