"""Which models should exist: `$ERLLAMA_HOME/models.json`. Written whole before anybody is told; survives every crash.

Models that clients loaded are in it from their first readiness on. Models of erllama.toml are not: they load at every start; only
that somebody unloaded one is, until the next `up`. `up_id` tells one `up` from the next: circusd and the controller
may have died in between, which is no reason for an unloaded model to come back.
"""

import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from erllama_host.config.model import ModelConfig, SpecAdapter
from erllama_host.controller.files import write_durably

VERSION = 1


class Wanted(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """One model that should exist."""

    config: ModelConfig
    source: Literal["runtime", "config"] = "runtime"
    adapters: list[SpecAdapter] = []


class DesiredState(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """The file's content.

    Attributes:
        next_auto_id: number of the next model loaded without an id; never goes back.
        unloaded: configured models that were unloaded since `up_id`. adapters: those of configured models.
    """

    version: int = VERSION
    next_auto_id: int = 1
    models: dict[str, Wanted] = {}
    up_id: str = ""
    unloaded: list[str] = []
    adapters: dict[str, list[SpecAdapter]] = {}


class DesiredFile:
    """Reads and writes the file. Owner of `state`: the keeper, one change at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state = DesiredState()

    def load(self, up_id: str) -> Path | None:
        """Read the file. One that cannot be read is set aside and returned; then nothing is wanted."""
        aside = None
        if self._path.exists():
            try:
                self.state = msgspec.json.decode(self._path.read_bytes(), type=DesiredState)
                if self.state.version != VERSION:
                    raise ValueError(f"version {self.state.version}")
            except ValueError:
                self.state = DesiredState()
                aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
                self._path.replace(aside)
        if self.state.up_id != up_id:
            self.state = msgspec.structs.replace(self.state, up_id=up_id, unloaded=[])
        return aside

    def change(self, **fields: Any) -> None:
        """Replace fields of the state and write it. Blocks for an fsync.

        Raises:
            OSError: it cannot be written; the state is as before, so that trying again tries again.
        """
        state = msgspec.structs.replace(self.state, **fields)
        write_durably(self._path, msgspec.json.format(msgspec.json.encode(state), indent=2))
        self.state = state

    def want(self, model_id: str, wanted: Wanted) -> None:
        """A client's model should exist."""
        if self.state.models.get(model_id) != wanted:
            self.change(models={**self.state.models, model_id: wanted})

    def forget(self, model_id: str, configured: bool) -> None:
        """A model should not exist any more; a configured one until the next `up`."""
        models = {key: value for key, value in self.state.models.items() if key != model_id}
        adapters = {key: value for key, value in self.state.adapters.items() if key != model_id}
        unloaded = sorted({*self.state.unloaded, model_id}) if configured else self.state.unloaded
        if (models, adapters, unloaded) != (self.state.models, self.state.adapters, self.state.unloaded):
            self.change(models=models, adapters=adapters, unloaded=unloaded)

    def want_configured(self, model_id: str, adapters: list[SpecAdapter]) -> None:
        """A configured model is wanted (again), with these adapters."""
        unloaded = [each for each in self.state.unloaded if each != model_id]
        all_adapters = {**self.state.adapters, model_id: adapters}
        if not adapters:
            all_adapters.pop(model_id)
        if (unloaded, all_adapters) != (self.state.unloaded, self.state.adapters):
            self.change(unloaded=unloaded, adapters=all_adapters)

    def take_auto_number(self) -> int:
        """The next number for an automatic id, used up for ever."""
        number = self.state.next_auto_id
        self.change(next_auto_id=number + 1)
        return number
