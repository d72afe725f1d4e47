"""One stream, move by move: what is sent, when it waits, when it gives up."""

from dataclasses import replace

import pytest

from erllama_host.client.actions import Deliver, End, Fail, Send
from erllama_host.client.infer_options import infer_request
from erllama_host.client.limits import StreamLimits
from erllama_host.client.stream_state import Phase, StreamState
from erllama_host.errors import InternalError, ModelFailed, QueueFull, Timeout, WorkerDied
from erllama_host.protocol.inference import (
    Accepted,
    AdapterUse,
    Done,
    ErrorBody,
    Lost,
    Moved,
    Part,
    Tokens,
    pack_tokens,
    unpack_tokens,
)

REF = "tiny/" + "0" * 32
LIMITS = StreamLimits()
PROMPT = pack_tokens([1, 2])


def started(limits=LIMITS, deadline=None, online=True, **options):
    state = StreamState(REF, infer_request("hi", options).body, limits, deadline)
    return state, state.start(0.0, online)


def accepted(state, now=0.0, life="a", attempt=0, adapters=(), alone=False):
    event = Accepted(incarnation=life, prompt=PROMPT, seed=9, attempt=attempt, adapters=list(adapters), alone=alone)
    return state.on_event(event, now)


def running(limits=LIMITS, **options):
    state, _ = started(limits, **options)
    accepted(state)
    return state


def tokens(first, *ids, text=None):
    text = "x" * len(ids) if text is None else text
    return Tokens(first_index=first, ids=pack_tokens(ids), parts=[Part("text", text)])


def error(code, **details):
    return ErrorBody(code=code, message=code, details=details)


def kinds(actions):
    return [a.kind if isinstance(a, Send) else type(a).__name__ for a in actions]


def failure(actions):
    (action,) = [a for a in actions if isinstance(a, Fail)]
    return action.error


def test_it_submits_once_there_is_a_connection():
    state, actions = started(online=False)
    assert actions == []
    (send,) = state.on_online(1.0)
    assert (send.kind, send.body.text, send.body.credit, send.body.attempt) == ("infer", "hi", 256, 0)


def test_credit_follows_the_reader_in_chunks():
    state = running()
    state.on_event(tokens(0, *range(100)), 0.0)
    assert state.on_read(63, 0.0) == []
    (send,) = state.on_read(1, 0.0)
    assert (send.kind, send.body.tokens) == ("credit", 64)
    assert state.on_read(36, 0.0) == []


def test_silence_is_asked_about_only_while_the_worker_may_speak():
    state = running(replace(LIMITS, window=4, grant_at=1))
    assert state.wake_at() == 2.0
    (send,) = state.on_tick(2.0)
    assert (send.kind, send.body.next_index) == ("resume", 0)
    state.on_event(tokens(0, 1, 2, 3, 4), 2.0)
    assert kinds(state.on_tick(4.5)) == []
    assert kinds(state.on_tick(5.0)) == ["credit"]
    assert kinds(state.on_read(1, 500.0)) == ["credit"]
    assert kinds(state.on_tick(500.1)) == [], "the time before the grant is not silence"
    assert kinds(state.on_tick(502.1)) == ["resume"]


def test_a_gap_is_asked_about_and_not_delivered():
    state = running()
    (send,) = state.on_event(tokens(3, 7), 0.0)
    assert (send.kind, send.body.next_index) == ("resume", 0)
    assert state.on_event(tokens(4, 7), 0.1) == [], "not again at once"
    assert kinds(state.on_event(tokens(5, 7), 0.3)) == ["resume"]
    assert kinds(state.on_event(tokens(0, 1, 2, 3), 0.3)) == ["Deliver"]
    assert state.on_event(tokens(0, 1, 2, 3), 0.3) == []
    assert kinds(state.on_event(tokens(2, 3, 4), 0.9)) == ["resume"], "text across the end cannot be cut"


def test_channels_become_pieces_and_text_that_was_held_back_comes_with_the_end():
    state = running()
    event = Tokens(first_index=0, ids=pack_tokens([5, 6]), parts=[Part("thinking", "hm"), Part("text", "so")])
    (deliver,) = state.on_event(event, 0.0)
    assert [(p.channel, p.text, p.token_ids, p.seq) for p in deliver.pieces] == [
        ("thinking", "hm", [5, 6], 0),
        ("text", "so", [], 2),
    ]
    rest, end = state.on_event(Done(finish_reason="stop", generated=2, parts=[Part("text", "…")]), 0.5)
    assert isinstance(rest, Deliver)
    assert [p.text for p in rest.pieces] == ["…"]
    assert (end.result.stats.finish_reason, end.result.prompt) == ("stop", PROMPT)
    assert end.result.stats.client_total_ms == 500


def test_lost_means_resubmit_with_all_that_is_known():
    state = running(stop=["END"], max_tokens=50)
    accepted(state, adapters=[AdapterUse("a1", 0.5)])
    state.on_event(tokens(0, 5, 6), 0.0)
    assert state.on_event(Lost(incarnation="b"), 0.0) == [], "nobody asked"
    state.on_event(Moved(incarnation="b"), 0.0)
    (send,) = state.on_event(Lost(incarnation="b"), 0.0)
    body = send.body
    assert (send.kind, body.text, body.tokens, body.attempt) == ("infer", None, PROMPT, 1)
    assert (body.stop, body.max_tokens, body.credit) == (["END"], 50, 254)
    assert unpack_tokens(body.resume.delivered) == [5, 6]
    assert (body.resume.seed, body.resume.deaths, body.resume.adapters) == (9, 1, [AdapterUse("a1", 0.5)])
    assert state.on_event(tokens(2, 99), 0.0) == [], "not accepted yet: of an earlier life"
    assert kinds(state.on_event(tokens(2, 99), 0.3)) == ["resume"]
    accepted(state, 0.0, "b", attempt=1)
    assert kinds(state.on_event(tokens(2, 7), 0.0)) == ["Deliver"]
    assert state.num_resumes == 1


def test_an_older_number_in_answer_to_a_question_means_the_request_was_lost():
    state = running()
    die(state, 1.0, 1)
    assert accepted(state, 1.1, "a", attempt=0) == [], "nobody asked yet: of an earlier life"
    assert kinds(state.on_tick(3.0)) == ["resume"]
    (send,) = accepted(state, 3.1, "a", attempt=0)
    assert (send.kind, send.body.attempt) == ("infer", 1)


def die(state, now, attempt):
    actions = state.on_event(Moved(incarnation=f"life{attempt}"), now)
    assert kinds(actions) == ["resume"]
    return state.on_event(Lost(incarnation=f"life{attempt}"), now)


def test_resumes_in_a_row_without_a_token_are_bounded():
    state = running()
    for attempt in (1, 2, 3):
        (send,) = die(state, float(attempt), attempt)
        assert send.body.resume.deaths == attempt
        accepted(state, float(attempt), f"life{attempt}", attempt=attempt)
        accepted(state, float(attempt), f"life{attempt}", attempt=attempt, alone=attempt >= 2)
    assert isinstance(failure(die(state, 4.0, 4)), WorkerDied)
    assert state.phase is Phase.ENDED


def test_deaths_in_the_queue_are_not_held_against_a_request_that_would_run_alone():
    state = running()
    for attempt in range(1, 12):
        (send,) = die(state, float(attempt), attempt)
        assert send.body.resume.deaths == min(attempt, 2)
        accepted(state, float(attempt), f"life{attempt}", attempt=attempt)
    accepted(state, 12.0, "life11", attempt=11, alone=True)
    (send,) = die(state, 13.0, 12)
    assert send.body.resume.deaths == 3, "now it is"
    accepted(state, 13.0, "life12", attempt=12, alone=True)
    assert failure(die(state, 14.0, 13)).details["poison"]


def test_a_new_token_makes_deaths_count_from_the_start():
    state = running()
    for attempt in range(1, 10):
        (send,) = die(state, float(attempt), attempt)
        assert send.body.resume.deaths == 1
        accepted(state, float(attempt), f"life{attempt}", attempt=attempt)
        state.on_event(tokens(attempt - 1, attempt), float(attempt))


def test_max_resumes_0_fails_at_the_first_death():
    state = running(replace(LIMITS, max_resumes=0))
    assert isinstance(failure(die(state, 1.0, 1)), WorkerDied)


def test_a_death_the_host_reports_is_taken_up_again_unless_it_is_poison():
    state = running()
    assert state.on_event(error("WorkerDied"), 1.0) == []
    assert state.phase is Phase.WAITING
    assert kinds(state.on_tick(state.wake_at())) == ["infer"]
    assert failure(state.on_event(error("WorkerDied", poison=True), 3.0)).details["poison"]


def test_loading_is_waited_out_then_asked_or_submitted():
    state, _ = started()
    state.on_event(error("ModelLoading", retry_after_s=1.0), 0.0)
    assert state.phase is Phase.WAITING
    assert state.on_tick(0.9) == []
    assert kinds(state.on_tick(1.3)) == ["infer"]
    accepted(state, 1.4)
    state.on_event(error("ModelLoading"), 2.0)
    assert kinds(state.on_tick(3.0)) == ["resume"], "the worker may be the same: only the controller is new"


def test_loading_waits_differ_between_requests():
    waits = set()
    for number in range(8):
        state = StreamState(f"tiny/{number * 0x1FFFFFFF:032x}", infer_request("hi", {}).body, LIMITS)
        state.start(0.0, online=True)
        state.on_event(error("ModelLoading", retry_after_s=1.0), 0.0)
        waits.add(state.wake_at())
    assert len(waits) > 4
    assert all(1.0 <= wait <= 1.25 for wait in waits)


def test_a_hint_ends_the_wait():
    state, _ = started()
    state.on_event(error("ModelLoading", retry_after_s=5.0), 0.0)
    assert state.on_event(Moved(incarnation=""), 0.1) == []
    assert kinds(state.on_event(Moved(incarnation="b"), 0.2)) == ["infer"]


def test_a_full_queue_refuses_what_is_new_and_delays_what_ran_before():
    state, _ = started()
    assert isinstance(failure(state.on_event(error("QueueFull"), 0.0)), QueueFull)
    assert isinstance(failure(running().on_event(error("QueueFull"), 0.0)), QueueFull), "also after it was accepted"
    state = running()
    die(state, 1.0, 1)
    accepted(state, 1.0, "life1", attempt=1)
    assert state.on_event(error("QueueFull", retry_after_s=0.1), 1.0) == []
    (send,) = state.on_tick(2.0)
    assert (send.kind, send.body.attempt, send.body.resume.deaths) == ("infer", 2, 1)


def test_a_controller_that_did_not_know_the_worker_yet_says_when_it_does():
    state = running()
    assert kinds(state.on_online(1.0)) == ["resume"]
    assert state.on_event(error("ModelLoading", retry_after_s=2.0), 1.0) == []
    assert kinds(state.on_event(Moved(incarnation="a"), 1.01)) == ["resume"], (
        "the same worker, and no reason to wait on"
    )
    assert state.on_event(Moved(incarnation="a"), 1.02) == [], "not again and again"


@pytest.mark.parametrize(("code", "kind"), [("ModelFailed", ModelFailed), ("FromTheFuture", InternalError)])
def test_other_errors_end_the_stream(code, kind):
    assert isinstance(failure(running().on_event(error(code), 0.0)), kind)


def test_a_client_that_seemed_gone_runs_its_request_again():
    state = running()
    state.on_event(tokens(0, 5), 0.0)
    gone = Done(finish_reason="cancelled", cancelled=True, cancel_reason="lost_client", generated=1)
    (send,) = state.on_event(gone, 20.0)
    assert (send.kind, send.body.attempt, send.body.resume.deaths) == ("infer", 1, 0)


def test_done_before_all_tokens_came_asks_for_them_but_not_for_ever():
    state = running()
    done = Done(finish_reason="length", generated=3)
    for _ in range(8):
        assert kinds(state.on_event(done, 0.0)) == ["resume"]
        accepted(state)
    lost = failure(state.on_event(done, 0.0))
    assert isinstance(lost, Timeout) and "last 3 tokens" in lost.message


def test_a_client_that_stood_still_itself_accuses_nobody():
    state = running()
    assert kinds(state.on_tick(500.0)) == ["resume"], "what came meanwhile has not been read yet"
    assert state.on_event(tokens(0, 5), 500.0) and state.phase is Phase.RUNNING
    for second in range(501, 620):
        assert "Fail" not in kinds(state.on_tick(float(second)))
    assert isinstance(failure(state.on_tick(620.0)), Timeout), "silence that it was there for counts"


def test_two_lives_that_took_the_same_attempt_are_not_mixed():
    state = running()
    assert isinstance(failure(accepted(state, 0.0, "b")), WorkerDied)


def test_cancel_is_sent_once_and_ends_without_consent_in_the_end():
    state = running()
    assert kinds(state.cancel(1.0)) == ["cancel"]
    assert state.cancel(1.0) == []
    assert kinds(state.on_tick(3.0)) == ["resume"], "the cancel may be lost"
    (end,) = state.on_tick(11.0)
    assert end.result.stats.cancelled
    assert state.on_event(tokens(0, 1), 12.0) == []


@pytest.mark.parametrize("prepare", ["waiting", "offline", "never online"])
def test_cancel_of_what_nobody_has_ends_at_once(prepare):
    state, _ = started(online=prepare != "never online")
    if prepare == "waiting":
        state.on_event(error("ModelLoading"), 0.0)
    if prepare == "offline":
        state.on_offline(0.0)
    assert kinds(state.cancel(1.0)) == ["End"]


def test_a_cancelled_stream_ends_when_its_worker_or_host_goes():
    state = running()
    state.cancel(0.0)
    assert kinds(state.on_offline(0.5)) == ["End"]
    state = running()
    state.cancel(0.0)
    state.on_tick(2.0)
    assert kinds(state.on_event(Lost(), 2.0)) == ["End"]


def test_the_deadline_is_the_workers_first():
    state, _ = started(deadline=10.0)
    accepted(state)
    state.on_event(tokens(0, 1), 9.0)
    assert not any(isinstance(a, Fail) for a in state.on_tick(10.5))
    assert isinstance(failure(state.on_tick(13.0)), Timeout)


def test_a_worker_that_is_mute_in_spite_of_questions_times_out():
    state = running()
    asked = [kinds(state.on_tick(float(second))) for second in range(120)]
    assert asked.count(["resume"]) + asked.count(["resume", "credit"]) > 30
    actions = state.on_tick(120.0)
    assert kinds(actions) == ["cancel", "Fail"]
    assert isinstance(failure(actions), Timeout)


def test_after_a_break_it_asks_for_the_rest():
    state = running()
    state.on_event(tokens(0, 1, 2), 0.0)
    state.on_offline(1.0)
    assert state.on_tick(20.0) == []
    (send,) = state.on_online(25.0)
    assert (send.kind, send.body.next_index) == ("resume", 2)
    assert state.on_tick(25.0) == []


def test_the_end_is_the_end():
    state = running()
    (end,) = state.on_event(Done(finish_reason="stop"), 0.0)
    assert isinstance(end, End)
    assert state.wake_at() == float("inf")
    assert state.on_event(tokens(0, 1), 0.0) == state.on_tick(99.0) == state.cancel(0.0) == state.on_read(1, 0.0) == []
    assert state.on_online(0.0) == state.on_offline(0.0) == state.give_up(Timeout("x")) == []
