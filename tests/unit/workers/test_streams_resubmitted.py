"""A request that its client sends again to a worker that knows it."""

import pytest

from erllama_host.protocol.inference import Accepted, Done, ErrorBody
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


LOST = Done(finish_reason="cancelled", cancelled=True, cancel_reason="lost_client")
FULL = ErrorBody(code="QueueFull", message="full")


@pytest.mark.parametrize(("kind", "end"), [("done", LOST), ("error", FULL)])
def test_what_was_given_up_or_had_no_room_runs_anew(kind, end):
    streams = opened()
    streams.ended(REF, kind, end, 11.0)
    assert not streams.resubmitted(REF, PEER, 0)
    assert not streams.resubmitted(REF, b"another", 1)
    assert streams.resubmitted(REF, PEER, 1)
    assert streams.find(REF) is None


def test_what_ended_otherwise_is_not_run_again():
    streams = opened()
    streams.ended(REF, "done", Done(finish_reason="length"), 1.0)
    assert not streams.resubmitted(REF, PEER, 1)
    assert streams.find(REF) is not None
    streams = opened()
    streams.ended(REF, "error", ErrorBody(code="InvalidRequest", message="bad"), 1.0)
    assert not streams.resubmitted(REF, PEER, 1)
