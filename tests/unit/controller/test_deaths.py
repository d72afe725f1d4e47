"""Which ends of workers are news, and which are of our own making."""

from types import SimpleNamespace

import pytest

from erllama_host.config import ModelConfig, Paths
from erllama_host.controller import deaths
from erllama_host.controller.deaths import Deaths
from erllama_host.controller.lifecycle import Event, Model, Models
from erllama_host.supervisor import notes
from erllama_host.supervisor.notes import ExitNote

PID = 4321


class Scene:
    """One model, a journal of names, and a keeper that runs nothing by itself."""

    def __init__(self, tmp_path, *events):
        self.events, self.tallies, self.flows = [], [], []
        self.paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
        self.paths.run.mkdir()
        self.models, self.model = Models(), Model("tiny", ModelConfig(backend="stub"), "load", stays=True, pid=PID)
        self.models.add(self.model, 0.0)
        self.links = SimpleNamespace(of_model=lambda model_id: None)
        self.journal = SimpleNamespace(add=lambda name, model_id, **fields: self.events.append(name))
        for event in events:
            self.apply(self.model, event)
        self.deaths = Deaths(self, self)

    def apply(self, model, event):
        self.models.apply(model, event, 1.0)

    def spawn(self, flow):
        self.flows.append(flow)

    def count(self, name, by=1):
        self.tallies.append(name)

    async def run(self):
        for flow in self.flows:
            await flow


@pytest.fixture(autouse=True)
def no_wait_for_notes(monkeypatch):
    monkeypatch.setattr(deaths, "NOTE_TIMEOUT_S", 0.05)


@pytest.mark.parametrize(
    ("note", "event", "tally"),
    [
        (ExitNote(PID, 0.0, -9), "crashed", "worker_ends_crashed"),
        (None, "died", "worker_ends_unknown"),
    ],
)
async def test_an_end_that_nobody_asked_for_is_news(tmp_path, note, event, tally):
    scene = Scene(tmp_path, Event.READY)
    if note is not None:
        notes.write_exit(scene.paths.run, notes.watcher_name("tiny"), note)
    scene.deaths.on_death(scene.model, PID)
    scene.deaths.on_death(scene.model, PID)
    await scene.run()
    assert (scene.events, scene.tallies) == ([event], [tally])
    assert scene.model.last_failure


async def test_a_model_that_was_let_go_has_not_failed(tmp_path):
    scene = Scene(tmp_path, Event.READY, Event.LET_GO)
    scene.deaths.on_death(scene.model, PID)
    await scene.run()
    assert (scene.events, scene.tallies, scene.model.last_failure) == ([], [], None)


async def test_the_end_of_a_model_that_is_forgotten_meanwhile_is_no_news(tmp_path):
    """After a failed load the model goes, and its notes with it, while the end of its process waits to be explained."""
    scene = Scene(tmp_path, Event.LOAD_FAILED)
    scene.deaths.on_death(scene.model, PID)
    scene.models.remove("tiny")
    await scene.run()
    assert (scene.events, scene.tallies) == ([], [])
