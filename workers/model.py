"""What the service thread knows of the engine and of the loaded model: values and one small interface. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from erllama_host.errors import ErllamaError
from erllama_host.protocol.inference import SamplingParams
from workers.backend.base import Vocabulary
from workers.backend.values import ContextLimits, Footprint, ModelFacts
from workers.commands import Command, EngineSnapshot, Report, Work
from workers.text import Markers


class EnginePort(Protocol):
    """The engine as the service sees it. All of it may be used from the service thread at any time; nothing blocks."""

    @property
    def snapshot(self) -> EngineSnapshot:
        """What it is doing."""
        ...

    @property
    def work(self) -> Work | None:
        """The piece of work that it is at; None while it has nothing to do."""
        ...

    def post(self, command: Command) -> None:
        """Hand over a command."""
        ...

    def reports(self) -> list[Report]:
        """All reports since the last call, in order."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model that serves.

    Attributes:
        check_sampling: see `Backend.check_sampling`.
        fingerprint: of the file, hex. tier: name of the tier its rows must reach. kv_mode, kv_reason: see ModelInfo.
        footprint: at load. load_ms: how long the load took.
    """

    engine: EnginePort
    vocabulary: Vocabulary
    check_sampling: Callable[[SamplingParams], None]
    facts: ModelFacts
    limits: ContextLimits
    markers: Markers
    footprint: Footprint
    fingerprint: str
    tier: str
    kv_mode: str
    kv_reason: str
    load_ms: float


# ---- reports of the engine thread that are not the engine's -------------------------------------------------------


@dataclass(frozen=True)
class LoadAdvanced:
    """The load went on: fraction in [0, 1] of `phase`."""

    phase: str
    fraction: float


@dataclass(frozen=True)
class Loaded:
    """The model serves from now on."""

    model: LoadedModel


@dataclass(frozen=True)
class LoadFailed:
    """The load cannot succeed."""

    error: ErllamaError


@dataclass(frozen=True)
class EngineEnded:
    """The engine thread has left its loop: after `Stop` (`error` None), or because of an exception."""

    error: BaseException | None
