"""A request that its client sends again to a worker that knows it."""

from erllama_host.protocol.inference import Accepted, Done
from workers.streams import Send, Streams

REF, PEER = "tiny/" + "a" * 32, b"client"


def opened(attempt=0):
    streams = Streams("life")
    streams.open(REF, PEER, 0.0, credit=8, attempt=attempt)
    streams.accept(REF, Accepted(incarnation="life", prompt=b"", seed=1, attempt=attempt))
    return streams


def test_what_runs_goes_on_under_the_later_attempts_number():
    streams = opened()
    assert not streams.resubmitted(REF, PEER, 2)
    effect, *_ = streams.resume(REF, PEER, 0, 1.0)
    assert effect == Send(PEER, REF, "accepted", Accepted(incarnation="life", prompt=b"", seed=1, attempt=2))


def test_what_was_given_up_for_a_client_that_is_back_runs_anew():
    streams = opened()
    streams.ended(REF, "done", Done(finish_reason="cancelled", cancelled=True, cancel_reason="lost_client"), 11.0)
    assert not streams.resubmitted(REF, PEER, 0)
    assert not streams.resubmitted(REF, b"another", 1)
    assert streams.resubmitted(REF, PEER, 1)
    assert streams.find(REF) is None


def test_what_ended_otherwise_is_not_run_again():
    streams = opened()
    streams.ended(REF, "done", Done(finish_reason="length"), 1.0)
    assert not streams.resubmitted(REF, PEER, 1)
    assert streams.find(REF) is not None
