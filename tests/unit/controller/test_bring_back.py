"""What a new controller makes of the watchers that the last one left."""

from types import SimpleNamespace

import pytest

from erllama_host.config import Config, ModelConfig, Paths
from erllama_host.controller import specs
from erllama_host.controller.bring_back import bring_back
from erllama_host.controller.desired import DesiredState
from erllama_host.controller.lifecycle import Model
from erllama_host.supervisor import notes
from erllama_host.supervisor.notes import ExitNote

WATCHER = notes.watcher_name("tiny")
ASKED = ExitNote(7, 0.0, 0, asked=True)


class Circus:
    """circusd with one watcher, or none."""

    def __init__(self, status):
        self._status = status

    async def statuses(self):
        return {} if self._status is None else {WATCHER: self._status}

    async def pids(self, watcher):
        return [99] if self._status == "active" else []


class Keeper:
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, model):
        self.told.append(("begin", model.model_id))

    def adopt(self, model):
        self.told.append(("adopt", model.model_id))

    def watch(self, model, pid):
        self.told.append(("watch", pid))


@pytest.mark.parametrize(
    ("status", "note", "told"),
    [
        (None, None, [("begin", "tiny")]),
        ("active", None, [("adopt", "tiny"), ("watch", 99)]),
        ("stopped", ASKED, [("adopt", "tiny")]),  # by an operator: respected
        ("stopped", None, [("begin", "tiny")]),  # added, and not started yet, when the last controller died
    ],
)
async def test_a_load_that_was_under_way_goes_on(tmp_path, status, note, told):
    paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    paths.prepare()
    specs.write_spec(paths, Config(), Model("tiny", ModelConfig(backend="stub"), "load"))
    if note is not None:
        notes.write_exit(paths.run, WATCHER, note)
    world = SimpleNamespace(
        paths=paths, config=Config(), desired=SimpleNamespace(state=DesiredState()), circus=Circus(status)
    )
    keeper = Keeper()
    await bring_back(world, keeper)
    assert keeper.told == told
