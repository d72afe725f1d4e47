"""The table of transitions, and what requests are answered in each state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama_host.config import ModelConfig
from erllama_host.controller.lifecycle import (
    SHOULD_RUN,
    TRANSITIONS,
    Event,
    Model,
    Models,
    State,
    refusal,
    retry_after_s,
    shown_status,
)
from erllama_host.errors import AlreadyLoaded, ModelFailed, ModelLoadFailed, ModelLoading, ModelNotLoaded


def new(model_id: str = "tiny", **fields: object) -> Model:
    return Model(model_id, ModelConfig(backend="stub"), "load", **fields)


def walk(*events: Event) -> Model:
    models, model = Models(), new()
    models.add(model, 0.0)
    for at, event in enumerate(events, start=1):
        models.apply(model, event, float(at))
    return model


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ((), State.LOADING),
        ((Event.HELLO, Event.READY), State.READY),
        ((Event.DIED, Event.DIED), State.LOADING),
        ((Event.GAVE_UP,), State.FAILED),
        ((Event.LOAD_FAILED,), State.FAILED),
        ((Event.READY, Event.DIED), State.RESTARTING),
        ((Event.READY, Event.DIED, Event.READY), State.READY),
        ((Event.READY, Event.DIED, Event.GAVE_UP), State.FAILED),
        ((Event.READY, Event.DIED, Event.GAVE_UP, Event.RESTART), State.RESTARTING),
        ((Event.READY, Event.DIED, Event.GAVE_UP, Event.HELLO, Event.READY), State.READY),
        ((Event.READY, Event.LET_GO, Event.DIED), State.AWAY),
        ((Event.READY, Event.LET_GO, Event.WANTED), State.LOADING),
        ((Event.READY, Event.STOP, Event.DIED), State.STOPPING),
        ((Event.READY, Event.HELLO), State.RESTARTING),
    ],
)
def test_walks(events, state):
    assert walk(*events).state is state


@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_every_walk_keeps_the_promises(events):
    models, model = Models(), new()
    models.add(model, 0.0)
    for at, event in enumerate(events, start=1):
        before = model.state
        changed = models.apply(model, event, float(at))
        assert changed == (model.state is not before)
        if before is State.STOPPING:
            assert model.state is State.STOPPING, "a model that is being unloaded never serves again"
        if model.state is State.READY:
            assert model.stays and model.failure is None
        assert model.since <= at


def test_the_table_never_leaves_a_worker_where_there_should_be_none():
    for (state, event), new_state in TRANSITIONS.items():
        if event is Event.READY:
            assert new_state is State.READY and state is not State.AWAY and state is not State.STOPPING
        if event is Event.DIED:
            assert new_state is not State.READY
        if event is Event.STOP:
            assert new_state is State.STOPPING
    assert State.AWAY not in SHOULD_RUN and State.FAILED not in SHOULD_RUN


def test_restarts_are_counted_only_of_models_that_served():
    assert walk(Event.DIED, Event.DIED).restarts == 0
    assert walk(Event.READY, Event.DIED, Event.READY, Event.DIED).restarts == 2
    assert walk(Event.READY, Event.STOP, Event.DIED).restarts == 0


def test_requests_are_refused_by_state():
    assert refusal(walk(Event.READY), 2.0) is None
    loading = refusal(walk(), 0.5)
    assert isinstance(loading, ModelLoading) and 0.05 <= loading.retry_after_s <= 2.0
    restarting = refusal(walk(Event.READY, Event.DIED), 2.0)
    assert isinstance(restarting, ModelLoading) and restarting.details["state"] == "restarting"
    failed = walk(Event.READY, Event.DIED, Event.GAVE_UP)
    assert isinstance(refusal(failed, 3.0), ModelFailed)
    failed.failure = ModelLoadFailed("no tensors")
    assert refusal(failed, 3.0) is failed.failure
    assert isinstance(refusal(walk(Event.READY, Event.LET_GO), 3.0), ModelLoading)


def test_the_wait_follows_the_last_load():
    models, model = Models(), new()
    models.add(model, 0.0)
    models.apply(model, Event.READY, 1.5)
    models.apply(model, Event.DIED, 10.0)
    assert retry_after_s(model, 10.0) == pytest.approx(1.5)
    assert retry_after_s(model, 11.4) == pytest.approx(0.1)
    assert retry_after_s(model, 20.0) == pytest.approx(0.05)


def test_ids_are_taken_until_removed():
    models = Models()
    models.add(new(), 0.0)
    with pytest.raises(AlreadyLoaded):
        models.add(new(), 0.0)
    assert models.by_load_id("load") is models.get("tiny")
    assert models.by_load_id("") is None
    models.remove("tiny")
    with pytest.raises(ModelNotLoaded):
        models.get("tiny")
    models.add(new(), 0.0)


def test_shown_status():
    assert shown_status(walk()) == "loading"
    assert shown_status(walk(Event.READY)) == "idle"
    assert shown_status(walk(Event.READY, Event.LET_GO)) == "away"
