"""What becomes of a model: states, events, and the table of transitions. Pure; the controller's loop is its only writer.

                 ┌──────────── restart ──────────────┐
                 ▼                                    │
    add ──▶  LOADING ──ready──▶ READY ──died──▶ RESTARTING ──gave_up──▶ FAILED
              │  ▲                │ ▲                │                     │
              │  └── wanted ── AWAY └──── ready ─────┘                     │
              └── load_failed, gave_up ───────────────────────────────────▶┘

LOADING and RESTARTING differ in what a client is told and in what a failure means: the first load of a model belongs to the
client who asked for it and is forgotten when it fails; a model that has served stays, as FAILED, until somebody restarts or
unloads it. AWAY: unloaded for want of use or memory, comes back with the next request. STOPPING: being unloaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from erllama_host.config.model import ModelConfig, SpecAdapter
from erllama_host.errors import AlreadyLoaded, ErllamaError, ModelFailed, ModelLoading, ModelNotLoaded
from erllama_host.protocol.calls import ModelInfo


class State(Enum):
    """Where a model is."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    FAILED = "failed"
    AWAY = "away"


class Event(Enum):
    """What can happen to it."""

    HELLO = auto()  # a worker that is not ready yet has connected
    READY = auto()
    DIED = auto()
    LOAD_FAILED = auto()  # its worker says that it cannot be loaded
    GAVE_UP = auto()  # the supervisor does not start it any more
    RESTART = auto()  # somebody asks for it
    WANTED = auto()  # a request for a model that is away
    STOP = auto()  # unload
    LET_GO = auto()  # unload, but come back on demand


SHOULD_RUN = frozenset({State.LOADING, State.READY, State.RESTARTING})
"""States in which there should be a worker."""

S, E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    (S.LOADING, E.HELLO): S.LOADING,
    (S.LOADING, E.READY): S.READY,
    (S.LOADING, E.DIED): S.LOADING,
    (S.LOADING, E.LOAD_FAILED): S.FAILED,
    (S.LOADING, E.GAVE_UP): S.FAILED,
    (S.LOADING, E.RESTART): S.LOADING,
    (S.LOADING, E.STOP): S.STOPPING,
    (S.READY, E.HELLO): S.RESTARTING,  # a younger worker: the old one's end was not seen
    (S.READY, E.READY): S.READY,
    (S.READY, E.DIED): S.RESTARTING,
    (S.READY, E.GAVE_UP): S.FAILED,
    (S.READY, E.RESTART): S.RESTARTING,
    (S.READY, E.STOP): S.STOPPING,
    (S.READY, E.LET_GO): S.AWAY,
    (S.RESTARTING, E.HELLO): S.RESTARTING,
    (S.RESTARTING, E.READY): S.READY,
    (S.RESTARTING, E.DIED): S.RESTARTING,
    (S.RESTARTING, E.LOAD_FAILED): S.FAILED,
    (S.RESTARTING, E.GAVE_UP): S.FAILED,
    (S.RESTARTING, E.RESTART): S.RESTARTING,
    (S.RESTARTING, E.STOP): S.STOPPING,
    (S.FAILED, E.HELLO): S.RESTARTING,  # `circusctl start` or `restart`
    (S.FAILED, E.READY): S.READY,
    (S.FAILED, E.DIED): S.FAILED,
    (S.FAILED, E.LOAD_FAILED): S.FAILED,
    (S.FAILED, E.GAVE_UP): S.FAILED,
    (S.FAILED, E.RESTART): S.RESTARTING,
    (S.FAILED, E.STOP): S.STOPPING,
    (S.AWAY, E.DIED): S.AWAY,
    (S.AWAY, E.GAVE_UP): S.AWAY,
    (S.AWAY, E.WANTED): S.LOADING,
    (S.AWAY, E.RESTART): S.LOADING,
    (S.AWAY, E.STOP): S.STOPPING,
    (S.STOPPING, E.DIED): S.STOPPING,
    (S.STOPPING, E.GAVE_UP): S.STOPPING,
    (S.STOPPING, E.STOP): S.STOPPING,
}
"""What is not here is ignored: a late message of a worker that nobody waits for."""


@dataclass
class Model:
    """One model; written by `Models` and by the keeper of its flows (keeper.py), on the controller's loop.

    Attributes:
        load_id: of the present load; a worker of an earlier one is not listened to.
        source: `runtime` or `config`. stays: it is wanted for good (it has been ready, or is configured), also when it fails.
        since: monotonic seconds of the last change of state. process_since: of the present process.
        failure: the error for requests while FAILED. kill_reason: why we are killing its worker.
        info: the last its worker told. last_used: of the last request. seen_ends: pids whose end has been dealt with.
    """

    model_id: str
    config: ModelConfig
    load_id: str
    source: str = "runtime"
    state: State = State.LOADING
    stays: bool = False
    since: float = 0.0
    process_since: float = 0.0
    pid: int = 0
    incarnation: str = ""
    restarts: int = 0
    failure: ErllamaError | None = None
    last_failure: str | None = None
    last_log_lines: list[str] = field(default_factory=list)
    kill_reason: str = ""
    adapters: list[SpecAdapter] = field(default_factory=list)
    info: ModelInfo | None = None
    last_used: float = 0.0
    seen_ends: set[int] = field(default_factory=set)
    load_s: float = 2.0


class Models:
    """The table of models, by id."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def add(self, model: Model, now: float) -> Model:
        """Begin the life of a model.

        Raises:
            AlreadyLoaded: the id is taken.
        """
        self.check_free(model.model_id)
        model.since = model.process_since = model.last_used = now
        self._models[model.model_id] = model
        return model

    def check_free(self, model_id: str) -> None:
        """Raises AlreadyLoaded when the id is taken."""
        if model_id in self._models:
            raise AlreadyLoaded(f"a model with the id {model_id!r} exists already; unload it or choose another id")

    def remove(self, model_id: str) -> None:
        """End it; the id is free again."""
        self._models.pop(model_id, None)

    def find(self, model_id: str) -> Model | None:
        """The model, or None."""
        return self._models.get(model_id)

    def get(self, model_id: str) -> Model:
        """The model.

        Raises:
            ModelNotLoaded: no such id.
        """
        model = self._models.get(model_id)
        if model is None:
            raise ModelNotLoaded(f"no model {model_id!r} is loaded; `erllama ps` lists those that are")
        return model

    def by_load_id(self, load_id: str) -> Model | None:
        """The model that a certain request loaded."""
        return next((model for model in self if load_id and model.load_id == load_id), None)

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def apply(self, model: Model, event: Event, now: float) -> bool:
        """Let `event` happen to `model`; whether its state has changed."""
        new = TRANSITIONS.get((model.state, event))
        if new is None:
            return False
        changed, model.state = new is not model.state, new
        if event is Event.READY:
            if changed:
                model.load_s = max(0.2, now - model.process_since)
            model.stays, model.failure, model.kill_reason = True, None, ""
        if event is Event.DIED:
            model.restarts += 1 if model.state is State.RESTARTING else 0
            model.process_since = now
        if event in (Event.RESTART, Event.WANTED):
            model.failure = None
            model.process_since = now
        if changed:
            model.since = now
        return changed


def refusal(model: Model, now: float) -> ErllamaError | None:
    """What a request to `model` is answered instead of being forwarded; None when it can be forwarded."""
    if model.state in (State.READY, State.STOPPING):
        return None
    if model.state is State.FAILED:
        return model.failure or ModelFailed(
            f"model {model.model_id!r} is out of service; `erllama restart` starts it again"
        )
    words = {State.LOADING: "is loading", State.RESTARTING: "is restarting", State.AWAY: "is being loaded again"}
    return ModelLoading(
        f"model {model.model_id!r} {words[model.state]}",
        retry_after_s=retry_after_s(model, now),
        state=model.state.value,
    )


def retry_after_s(model: Model, now: float) -> float:
    """When asking again is worth while: what the last load took, less the time gone; between 50 ms and 2 s."""
    return min(2.0, max(0.05, model.load_s - (now - model.process_since)))


def shown_status(model: Model) -> str:
    """The status for people: the worker's own while it serves."""
    if model.state is State.READY:
        return model.info.status if model.info is not None else "idle"
    return str(model.state.value)
