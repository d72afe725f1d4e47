"""One call, move by move."""

import pytest

from erllama_host.client import host_calls, model_calls
from erllama_host.client.actions import End, Fail, Notify, Send
from erllama_host.client.call_state import ONCE, CallState
from erllama_host.errors import AlreadyLoaded, HostUnavailable, ModelLoading, Timeout
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import ErrorBody, Moved
from erllama_host.protocol.kinds import HOST_KINDS, MODEL_KINDS

REF = "@host/" + "0" * 32


def started(call, online=True, deadline=10.0):
    state = CallState(REF, call, deadline)
    return state, state.start(0.0, online)


def loading(retry_after_s=1.0):
    return ErrorBody(code="ModelLoading", message="loading", details={"retry_after_s": retry_after_s})


def test_it_is_sent_when_there_is_a_connection_and_ends_with_the_reply():
    state, actions = started(host_calls.counters(), online=False)
    assert actions == []
    assert state.on_online(1.0) == [Send("counters", None)]
    reply = c.Counters(counters={"a": 1.0})
    assert state.on_event(reply, 2.0) == [End(reply)]
    assert state.on_event(reply, 2.0) == state.on_tick(99.0) == state.on_online(3.0) == []
    assert state.wake_at() == float("inf")


def test_progress_is_passed_on():
    state, _ = started(host_calls.load_model("x", "tiny", {}, local=False, wait=True))
    event = c.LoadProgress(model_id="tiny", phase="loading")
    assert state.on_event(event, 1.0) == [Notify(event)]


def test_errors_end_it():
    state, _ = started(host_calls.counters())
    (action,) = state.on_event(ErrorBody(code="AlreadyLoaded", message="m"), 1.0)
    assert isinstance(action, Fail)
    assert isinstance(action.error, AlreadyLoaded)


def test_loading_is_waited_out_until_the_deadline():
    state, _ = started(model_calls.tokenize("tiny", "x", True, False))
    assert state.on_event(loading(), 0.0) == []
    assert 1.0 <= state.wake_at() <= 1.25
    assert state.on_tick(0.5) == []
    assert [a.kind for a in state.on_tick(1.3)] == ["tokenize"]
    state.on_event(loading(), 2.0)
    (action,) = state.on_tick(10.0)
    assert isinstance(action.error, ModelLoading), "tells what was waited for"


def test_status_does_not_wait_for_a_loading_model():
    state, _ = started(model_calls.status("tiny"))
    assert isinstance(state.on_event(loading(), 0.0)[0].error, ModelLoading)


def test_no_answer_is_a_timeout():
    state, _ = started(host_calls.counters())
    assert state.wake_at() == 10.0
    assert isinstance(state.on_tick(10.0)[0].error, Timeout)


@pytest.mark.parametrize("lost", ["reconnect", "moved"])
def test_it_is_sent_again_when_its_answer_may_be_lost(lost):
    state, first = started(model_calls.tokenize("tiny", "x", True, False))
    again = state.on_online(1.0) if lost == "reconnect" else state.on_event(Moved(incarnation="b"), 1.0)
    assert again == first
    assert state.on_event(Moved(incarnation=""), 1.0) == []


@pytest.mark.parametrize(
    "call",
    [
        host_calls.restart("tiny", True),
        model_calls.load_adapter("tiny", "/x", 1.0, True),
        model_calls.fork("tiny", "a", "b"),  # the second would find that the copy exists, or make another
        host_calls.drain(1.0),
    ],
    ids=lambda call: call.kind,
)
def test_what_must_not_happen_twice_is_not_sent_again(call):
    state, _ = started(call)
    assert isinstance(state.on_online(1.0)[0].error, HostUnavailable)


def test_an_unload_that_was_done_before_its_answer_was_lost_is_done():
    state, _ = started(host_calls.unload("tiny"))
    gone = ErrorBody(code="ModelNotLoaded", message="no such model")
    state.on_online(1.0)
    assert state.on_event(gone, 2.0) == [End(c.Ok())]
    state, _ = started(host_calls.unload("tiny"))
    assert isinstance(state.on_event(gone, 2.0)[0], Fail)


def test_every_kind_of_the_protocol_has_a_call():
    """A kind that no method sends would be dead."""
    import inspect

    sent = {name for module in (host_calls, model_calls) for name in _kinds_in(inspect.getsource(module))}
    streams = {"infer", "resume", "cancel", "credit"}
    inside = {"worker_info"}
    assert sent | streams | inside == HOST_KINDS.keys() | MODEL_KINDS.keys()


def _kinds_in(source):
    return [part.partition('"')[0] for part in source.split('Call("')[1:]]


def test_a_call_refused_while_the_model_loads_was_not_done_and_is_sent_when_it_is_ready():
    call = model_calls.load_adapter("tiny", "/x.gguf", 1.0, local=False)
    assert call.kind in ONCE
    state, sent = started(call)
    assert state.on_event(loading(), 1.0) == []
    assert state.on_event(Moved(incarnation="a"), 1.1) == sent
