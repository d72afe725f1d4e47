"""The registry of streams, move by move, on a clock of our own."""

from erllama_host.protocol.inference import Accepted, AdapterUse, Done, ErrorBody, Part, unpack_tokens
from workers.commands import CancelRequest, Generated, Hold
from workers.streams import MAX_SETTLED, Send, Streams

REF = "tiny/" + "0" * 32
ME, OTHER = b"\x01me", b"\x01other"
DONE = Done(finish_reason="stop")


def opened(credit=256, **options):
    streams = Streams("incarnation", **options)
    streams.open(REF, ME, 0.0, credit=credit)
    streams.accept(REF, Accepted(incarnation="incarnation", prompt=b"", seed=1))
    return streams


def tokens(first, *ids, text="x"):
    return Generated(REF, first, ids, (Part("text", text * len(ids)),))


def sent(effects, kind="tokens"):
    return [effect.body for effect in effects if isinstance(effect, Send) and effect.kind == kind]


def indices(effects):
    return [(body.first_index, unpack_tokens(body.ids)) for body in sent(effects)]


def test_a_stream_is_accepted_streamed_and_ended():
    streams = Streams("incarnation")
    streams.open(REF, ME, 0.0, credit=256)
    accepted = Accepted(incarnation="incarnation", prompt=b"", seed=1)
    assert streams.accept(REF, accepted) == [Send(ME, REF, "accepted", accepted)]
    assert indices(streams.generated(tokens(0, 7, 8), 0.1)) == [(0, [7, 8])]
    assert streams.num_active == 1
    assert streams.ended(REF, "done", DONE, 0.2) == [Send(ME, REF, "done", DONE)]
    assert streams.num_active == 0


def test_tokens_that_wait_leave_as_one_event():
    streams = opened(credit=1)
    streams.generated(tokens(0, 1), 0.0)
    streams.generated(tokens(1, 2), 0.1)
    streams.generated(tokens(2, 3), 0.2)
    effects = streams.credit(REF, ME, 1, 0.3)
    assert indices(effects) == [(1, [2, 3])]
    assert sent(effects)[0].parts == [Part("text", "xx")]


def test_out_of_credit_tokens_wait_and_the_engine_is_held():
    streams = opened(credit=2, max_ahead_tokens=4)
    assert indices(streams.generated(tokens(0, 1, 2), 0.0)) == [(0, [1, 2])]
    assert streams.generated(tokens(2, 3), 0.1) == []
    assert streams.generated(tokens(3, 4, 5, 6), 0.2) == [Hold(REF, True)]
    effects = streams.credit(REF, ME, 2, 0.3)
    assert indices(effects) == [(2, [3, 4, 5, 6])]
    assert effects[-1] == Hold(REF, False)


def test_the_end_waits_for_credit_too():
    streams = opened(credit=1)
    streams.generated(tokens(0, 1), 0.0)
    streams.generated(tokens(1, 2), 0.1)
    assert streams.ended(REF, "done", DONE, 0.2) == []
    assert [effect.kind for effect in streams.credit(REF, ME, 1, 0.3)] == ["tokens", "done"]


def test_resume_sends_again_what_the_client_lacks_in_the_same_events():
    streams = opened()
    for index in range(4):
        streams.generated(tokens(index, index), 0.1 * index)
    effects = streams.resume(REF, ME, 2, 1.0)
    assert effects[0].kind == "accepted"
    assert indices(effects) == [(2, [2]), (3, [3])]
    assert indices(streams.generated(tokens(4, 4), 1.1)) == [(4, [4])]


def test_resume_brings_fresh_credit_since_a_grant_may_have_been_lost():
    streams = opened(credit=1)
    streams.generated(tokens(0, 1), 0.0)
    streams.generated(tokens(1, 2), 0.1)
    assert indices(streams.resume(REF, ME, 1, 1.0)) == [(1, [2])]


def test_resume_after_the_end_sends_the_end_again():
    streams = opened()
    streams.generated(tokens(0, 1), 0.0)
    streams.ended(REF, "done", DONE, 0.1)
    assert [effect.kind for effect in streams.resume(REF, ME, 0, 5.0)] == ["accepted", "tokens", "done"]
    assert [effect.kind for effect in streams.resume(REF, ME, 1, 6.0)] == ["accepted", "done"]


def test_an_unknown_ref_is_lost():
    (effect,) = Streams("incarnation").resume(REF, ME, 0, 0.0)
    assert (effect.kind, effect.body.incarnation) == ("lost", "incarnation")


def test_only_the_client_that_opened_it_steers_a_stream():
    streams = opened(credit=1)
    (refused,) = streams.resume(REF, OTHER, 0, 0.0)
    assert (refused.peer, refused.kind, refused.body.code) == (OTHER, "error", "Forbidden")
    assert streams.cancel(REF, OTHER, "client") == []
    assert streams.credit(REF, OTHER, 100, 0.0) == []
    streams.generated(tokens(0, 1), 0.0)
    assert streams.generated(tokens(1, 2), 0.0) == []


def test_cancel_asks_the_engine_once():
    streams = opened()
    assert streams.cancel(REF, ME, "client") == [CancelRequest(REF, "client")]
    assert streams.cancel(REF, ME, "client") == []


def test_cancel_before_the_engine_knows_the_request_ends_it():
    streams = Streams("incarnation")
    streams.open(REF, ME, 0.0, credit=1)
    (effect,) = streams.cancel(REF, ME, "client")
    assert effect.kind == "done" and effect.body.cancelled and effect.body.cancel_reason == "client"
    assert streams.accept(REF, Accepted(incarnation="i", prompt=b"", seed=1)) == []


def test_a_silent_client_is_lost_and_a_sign_of_life_keeps_it():
    streams = opened(lost_after_s=10.0)
    streams.credit(REF, ME, 0, 8.0)
    assert streams.judge_silence(15.0) == []
    assert streams.judge_silence(18.5) == [CancelRequest(REF, "lost_client")]


def test_a_deadline_passes_before_the_prompt_is_ready():
    streams = Streams("incarnation")
    streams.open(REF, ME, 0.0, credit=1, deadline=3.0)
    assert streams.expire(2.0) == []
    (effect,) = streams.expire(3.0)
    assert effect.body.cancel_reason == "deadline"


def test_ended_streams_are_remembered_for_a_while_and_not_too_many():
    streams = opened()
    streams.ended(REF, "done", DONE, 1.0)
    streams.expire(30.0)
    assert streams.find(REF) is not None
    streams.expire(32.0)
    assert streams.find(REF) is None
    for number in range(MAX_SETTLED + 10):
        ref = f"tiny/{number:032x}"
        streams.open(ref, ME, 40.0, credit=1)
        streams.ended(ref, "error", ErrorBody(code="Timeout", message=""), 40.0)
    known = sum(streams.find(f"tiny/{number:032x}") is not None for number in range(MAX_SETTLED + 10))
    assert known == MAX_SETTLED


def test_the_adapter_set_of_the_admission_reaches_the_client():
    streams = opened()
    assert streams.admitted(REF, []) == []
    (effect,) = streams.admitted(REF, [AdapterUse("a", 0.5)])
    assert effect.kind == "accepted" and effect.body.adapters == [AdapterUse("a", 0.5)]


def test_a_client_hears_that_its_request_runs_alone():
    streams = opened()
    (effect,) = streams.admitted(REF, [], alone=True)
    assert effect.kind == "accepted" and effect.body.alone and effect.body.seed == 1


def test_a_resubmitted_stream_goes_on_at_its_index():
    streams = Streams("incarnation")
    streams.open(REF, ME, 0.0, credit=2, attempt=1, start=10)
    streams.accept(REF, Accepted(incarnation="incarnation", prompt=b"", seed=1, attempt=1))
    assert indices(streams.generated(tokens(10, 1, 2), 0.0)) == [(10, [1, 2])]
    assert streams.generated(tokens(12, 3), 0.1) == []


def test_before_the_process_leaves_what_has_ended_is_sent_without_credit():
    streams = opened(credit=1)
    streams.generated(tokens(0, 1), 0.0)
    streams.generated(tokens(1, 2), 0.1)
    assert streams.ended(REF, "done", DONE, 0.2) == []
    assert [effect.kind for effect in streams.release(0.3)] == ["tokens", "done"]
    assert streams.release(0.4) == []


def test_what_has_not_reached_the_engine_can_be_ended_together():
    streams = opened()
    other = REF.replace("0", "1")
    streams.open(other, ME, 0.0, credit=1)
    (effect,) = streams.end_opening("unload")
    assert (effect.ref, effect.body.cancel_reason) == (other, "unload")
    assert streams.end_opening("unload") == [] and streams.is_active(REF)
