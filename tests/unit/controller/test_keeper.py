"""The flows of models over fakes: what a full disk, a taken id, or a request at the wrong moment do to them."""

import asyncio
import errno
import io
import json
import time
from types import SimpleNamespace

import pytest

from erllama_host.config import ModelConfig, Paths, PolicyConfig, parse_config, read_specs
from erllama_host.controller import desired, footprints, specs
from erllama_host.controller.desired import DesiredFile
from erllama_host.controller.footprints import Footprints
from erllama_host.controller.journal import Journal
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.lifecycle import Event, Models, State
from erllama_host.controller.links import Links
from erllama_host.errors import ErllamaError, InternalError, ModelLoadFailed, ModelNotLoaded
from erllama_host.observability import Log

STUB = ModelConfig(backend="stub")


class Circus:
    """Starts nothing; says the pid that a test gives."""

    def __init__(self):
        self.watchers, self.restarted = {}, []
        self.graceful_timeouts = {}

    async def statuses(self):
        return dict(self.watchers)

    async def add(self, watcher, command, options):
        self.watchers[watcher] = "stopped"

    async def start_watcher(self, watcher):
        self.watchers[watcher] = "active"
        return [0]

    async def set_graceful_timeout(self, watcher, seconds):
        self.graceful_timeouts[watcher] = seconds

    async def restart_watcher(self, watcher, timeout_s):
        self.restarted.append(watcher)

    async def remove(self, watcher, timeout_s):
        self.watchers.pop(watcher, None)


class World:
    """The parts that a keeper touches: real where they are files or tables."""

    def __init__(self, tmp_path, config_text=""):
        self.paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
        self.paths.prepare()
        self.config = parse_config(config_text)
        self.said = io.StringIO()
        self.log = Log("test", stream=self.said)
        self.models, self.links, self.circus = Models(), Links(), Circus()
        self.desired = DesiredFile(self.paths.models_file)
        self.footprints = Footprints(self.paths.home / "footprints.json")
        self.journal = Journal(self.paths.home / "events.jsonl", 100, self.log)
        self.front = SimpleNamespace(send=lambda *message: True)
        self.memory = list

    def wanted(self):
        """What another controller would find."""
        file = DesiredFile(self.paths.models_file)
        file.load("")
        return sorted(file.state.models)

    def names(self):
        return [event.name for event in self.journal.since(0, 100).events]


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.journal.close()


@pytest.fixture
async def keeper(world):
    made = Keeper(world)
    yield made
    await made.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def serving(world, keeper, model_id="tiny"):
    model = await keeper.load(model_id, STUB, "")
    await until(lambda: f"model:{model_id}" in world.circus.watchers)
    keeper.ready(model, "1")
    await asyncio.wait_for(keeper.outcome(model), 20)
    return model


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_model_is_written_down_before_anybody_is_told(world, keeper):
    await serving(world, keeper)
    assert world.wanted() == ["tiny"] and world.paths.spec_file("tiny").exists()
    assert world.names() == ["loading", "ready"]


async def test_keys_that_do_nothing_are_accepted_with_a_warning(world, keeper):
    policy = PolicyConfig(continued_interval=64, boundary_align_tokens=8)
    await keeper.load("tiny", ModelConfig(backend="stub", policy=policy), "")
    warnings = [line for line in map(json.loads, world.said.getvalue().splitlines()) if line["level"] == "warning"]
    assert [line["keys"] for line in warnings] == [["continued_interval", "boundary_align_tokens"]]


async def test_a_full_disk_is_no_reason_not_to_serve(world, keeper, monkeypatch):
    """A load that nobody ends keeps its slot: after `load_at_once` of them nothing could be loaded any more."""
    with monkeypatch.context() as patch:
        patch.setattr(desired, "write_durably", full)
        patch.setattr(footprints, "write_durably", full)
        for number in range(world.config.host.load_at_once + 1):
            model = await serving(world, keeper, f"m{number}")
            assert model.state is State.READY
    assert world.wanted() == [] and world.names().count("not_written_down") == 3
    assert "No space left" in world.said.getvalue()
    keeper.apply(model, Event.DIED)
    keeper.ready(model, "2")
    await until(lambda: world.wanted() == ["m2"])


async def test_a_spec_that_cannot_be_written_fails_the_load_with_the_reason(world, keeper, monkeypatch):
    monkeypatch.setattr(specs, "write_durably", full)
    model = await keeper.load("tiny", STUB, "")
    with pytest.raises(InternalError, match="No space left"):
        await asyncio.wait_for(keeper.outcome(model), 20)
    assert world.models.find("tiny") is None


async def test_a_failed_load_leaves_no_file(world, keeper):
    """Hosts run for months, and ids are made up without end."""
    model = await keeper.load("tiny", STUB, "")
    await until(lambda: world.circus.watchers)
    world.paths.failure_file("tiny").write_text("{}")
    world.paths.failure_file("tiny").with_suffix(".tmp").write_text("{")
    keeper.fail(model, ModelLoadFailed("no tensors"))
    with pytest.raises(ModelLoadFailed):
        await asyncio.wait_for(keeper.outcome(model), 20)
    assert [path.name for path in world.paths.run.rglob("*") if path.is_file()] == []


async def test_an_unload_that_cannot_be_written_down_can_be_repeated(world, keeper, monkeypatch):
    await serving(world, keeper)
    with monkeypatch.context() as patch:
        patch.setattr(desired, "write_durably", full)
        with pytest.raises(InternalError):
            await keeper.unload("tiny")
    assert world.wanted() == ["tiny"]
    await keeper.unload("tiny")
    assert world.wanted() == [] and world.models.find("tiny") is None
    with pytest.raises(ModelNotLoaded):
        await keeper.unload("tiny")


async def test_what_is_remembered_late_does_not_bring_an_unloaded_model_back(world, keeper, monkeypatch):
    """Its spec would be loaded by the next controller."""
    model = await serving(world, keeper)
    gate, started = asyncio.Event(), asyncio.Event()
    persist = keeper._persist

    async def slow(change):
        started.set()
        await gate.wait()
        await persist(change)

    with monkeypatch.context() as patch:
        patch.setattr(keeper, "_persist", slow)
        late = asyncio.ensure_future(keeper.remember(model))
        await started.wait()
    await keeper.unload("tiny")
    gate.set()
    await late
    assert read_specs(world.paths) == []


async def test_many_flows_write_at_a_time(world, keeper):
    models = [await serving(world, keeper, f"m{number}") for number in range(4)]
    await asyncio.gather(*(keeper.remember(model) for model in models for _ in range(20)))
    assert len(read_specs(world.paths)) == len(world.wanted()) == 4
    assert "flow_failed" not in world.said.getvalue()


async def test_an_automatic_id_that_a_client_has_taken_is_passed_over(world, keeper):
    await serving(world, keeper, "erllama_model_1")
    await serving(world, keeper, "erllama_model_2")
    model = await keeper.load(None, STUB, "")
    assert model.model_id == "erllama_model_3"


@pytest.mark.parametrize(("idle_s", "state"), [(0.0, State.READY), (100.0, State.AWAY)])
async def test_a_model_that_is_used_again_by_then_is_not_let_go(world, keeper, idle_s, state):
    model = await serving(world, keeper)
    model.last_used = time.monotonic() - idle_s
    await keeper.let_go(model, "unused")
    assert model.state is state


async def test_a_restart_does_not_wait_for_loads(tmp_path):
    """It is refused from the moment it is asked for; a load of minutes by another model must not stretch that."""
    world = World(tmp_path, "[host]\nload_at_once = 1\n")
    keeper = Keeper(world)
    await serving(world, keeper)
    slow = await keeper.load("slow", STUB, "")
    await until(lambda: "model:slow" in world.circus.watchers)
    model = await keeper.restart("tiny")
    await until(lambda: world.circus.restarted == ["model:tiny"])
    keeper.ready(model, "2")
    await asyncio.wait_for(keeper.outcome(model), 20)
    assert (model.state, slow.state) == (State.READY, State.LOADING)
    await keeper.close()
    world.journal.close()


async def test_a_repeated_request_finds_its_load(world, keeper):
    first = await keeper.load("tiny", STUB, "once")
    assert await keeper.load("tiny", STUB, "once") is first
    with pytest.raises(ErllamaError, match="exists already"):
        await keeper.load("tiny", STUB, "twice")


async def test_the_cache_daemon_may_take_as_long_as_the_slowest_save_of_any_model(world, keeper):
    for model_id, save_s in [("quick", 1.0), ("slow", 100.0), ("medium", 50.0)]:
        model = await keeper.load(model_id, ModelConfig(backend="stub", evict_save_timeout_s=save_s), "")
        await until(lambda name=model_id: f"model:{name}" in world.circus.watchers)
        keeper.ready(model, "1")
        await asyncio.wait_for(keeper.outcome(model), 20)
    assert world.circus.graceful_timeouts == {"cache": 100.0 + 5.0 + 5.0}
