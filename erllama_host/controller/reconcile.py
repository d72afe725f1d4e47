"""Comparing what should exist with what circus has: at start, and every few seconds since operators use circusctl. Pure.

An operator's `circusctl stop model:x` is respected (the model is FAILED until started again), `reloadconfig`, which forgets every
watcher that is not in circus.ini, is made good.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from erllama_host.controller.lifecycle import SHOULD_RUN, Model
from erllama_host.supervisor.notes import model_of_watcher, watcher_name


class Act(Enum):
    """What to do about a model or a watcher."""

    BRING_UP = auto()  # its watcher has vanished
    MARK_STOPPED = auto()  # its watcher was stopped, by a hook or by an operator
    REMOVE_WATCHER = auto()  # nobody wants it


@dataclass(frozen=True)
class Step:
    """One difference."""

    act: Act
    model_id: str


def differences(models: Iterable[Model], statuses: Mapping[str, str], busy: Mapping[str, bool]) -> list[Step]:
    """What has to be done. `statuses`: watcher → circus's status; `busy`: models whose flows are under way are left alone."""
    steps, known = [], set()
    for model in models:
        known.add(model.model_id)
        if busy.get(model.model_id) or model.state not in SHOULD_RUN:
            continue
        status = statuses.get(watcher_name(model.model_id))
        if status is None:
            steps.append(Step(Act.BRING_UP, model.model_id))
        elif status == "stopped":
            steps.append(Step(Act.MARK_STOPPED, model.model_id))
    for watcher in statuses:
        model_id = model_of_watcher(watcher)
        if model_id is not None and model_id not in known:
            steps.append(Step(Act.REMOVE_WATCHER, model_id))
    return steps
