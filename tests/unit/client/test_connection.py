"""The shell over an in-memory link: what it does with phases, full pipes, bad messages and hints."""

import asyncio

import msgspec
import pytest

from erllama_host.client import host_calls, model_calls
from erllama_host.client.connection import Connection, Settings
from erllama_host.client.infer_options import infer_request
from erllama_host.client.limits import Patience, StreamLimits
from erllama_host.client.listeners import CallListener, Collector
from erllama_host.errors import HostUnavailable, InvalidRequest, ProtocolMismatch
from erllama_host.ids import new_ref
from erllama_host.protocol import calls as c
from erllama_host.protocol.envelope import PROTOCOL_VERSION, Envelope, encode_envelope
from erllama_host.protocol.inference import Accepted, Done, Moved, Part, Tokens, pack_tokens
from erllama_host.transport.client_link import LinkPhase
from tests.support.memory_link import MemoryLink

HASTY = Patience(connect_s=0.05, accept_s=0.3, grace_s=0.2)


class Rig:
    """A connection on a memory link."""

    def __init__(self, online=True, patience=None):
        self.link = MemoryLink()
        self.connection = Connection(self.link, Settings("ipc://x", patience=patience or Patience()))
        if online:
            self.link.become(LinkPhase.READY)

    def call(self, call):
        ref, future = new_ref(call.target), asyncio.get_running_loop().create_future()

        def settle(result, error):
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.connection.call(ref, call, CallListener(settle))
        return ref, future

    def complete(self, **options):
        ref, future = new_ref("tiny"), asyncio.get_running_loop().create_future()
        listener = Collector(
            lambda result, error: future.set_exception(error) if error else future.set_result(result),
            lambda count: self.connection.read(ref, count),
        )
        self.connection.stream(ref, "tiny", infer_request("hi", options), StreamLimits(), listener)
        return ref, future


async def bounded(awaitable):
    return await asyncio.wait_for(awaitable, 20)


async def test_a_call_carries_its_deadline_and_gets_its_answer():
    rig = Rig()
    ref, future = rig.call(host_calls.counters())
    ((envelope, body),) = rig.link.sent
    assert (envelope.kind, envelope.ref, envelope.model, body) == ("counters", ref, "", b"")
    assert 59_000 < envelope.deadline_ms <= 60_000
    rig.link.receive("reply", ref, c.Counters(counters={"a": 1.0}))
    assert (await bounded(future)).counters == {"a": 1.0}
    assert rig.connection.num_open == 0


async def test_what_is_asked_before_there_is_a_host_is_sent_when_it_comes():
    rig = Rig(online=False)
    rig.call(host_calls.counters())
    rig.complete()
    assert rig.link.sent == []
    rig.link.become(LinkPhase.ACCEPTED)
    rig.link.become(LinkPhase.READY)
    assert rig.link.kinds() == ["counters", "infer"]


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (LinkPhase.ABSENT, "erllama up"),
        (LinkPhase.ACCEPTED, "does not answer"),
        (LinkPhase.REFUSED, "refuses this key"),
    ],
)
async def test_what_is_known_of_a_missing_host_is_told(phase, words):
    rig = Rig(online=False, patience=HASTY)
    _, call = rig.call(host_calls.counters())
    _, stream = rig.complete()
    rig.link.become(phase)
    for future in (call, stream):
        with pytest.raises(HostUnavailable, match=words):
            await bounded(future)


async def test_a_refused_key_stays_refused_while_it_is_tried_again():
    rig = Rig(online=False, patience=HASTY)
    _, future = rig.call(host_calls.counters())
    for phase in (LinkPhase.ACCEPTED, LinkPhase.REFUSED, LinkPhase.ABSENT):
        rig.link.become(phase)
    with pytest.raises(HostUnavailable, match="refuses this key"):
        await bounded(future)


async def test_a_host_that_was_there_has_its_time_of_grace():
    rig = Rig(patience=HASTY)
    ref, future = rig.call(host_calls.counters())
    rig.link.become(LinkPhase.ABSENT)
    rig.link.become(LinkPhase.READY)
    assert rig.link.kinds() == ["counters", "counters"]
    rig.link.become(LinkPhase.ABSENT)
    with pytest.raises(HostUnavailable):
        await bounded(future)
    rig.link.receive("reply", ref, c.Counters())


async def test_a_full_pipe_is_tried_again():
    rig = Rig()
    rig.link.is_full = True
    ref, future = rig.call(host_calls.counters())
    assert rig.link.sent == []
    rig.link.is_full = False
    while not rig.link.sent:
        await asyncio.sleep(0.005)
    rig.link.receive("reply", ref, c.Counters())
    await bounded(future)
    assert rig.link.kinds() == ["counters"]


async def test_nothing_overtakes_what_a_full_pipe_kept():
    """A `cancel` before its `infer` would be for nobody, and the request would run."""
    rig = Rig()
    rig.link.is_full = True
    ref, _ = rig.complete()
    rig.link.is_full = False
    rig.connection.cancel(ref)
    rig.call(host_calls.counters())
    while len(rig.link.sent) < 3:
        await asyncio.sleep(0.005)
    assert rig.link.kinds() == ["infer", "cancel", "counters"]


@pytest.mark.parametrize(
    "call",
    [
        model_calls.tokenize("tiny", "half a character: \udcff", True, False),
        model_calls.tokenize("tiny", object(), True, False),
        model_calls.draft("tiny", [1], 2**70),
        model_calls.evict("tiny", float("nan")),
    ],
    ids=["surrogate", "object", "integer", "nan"],
)
@pytest.mark.parametrize("online", [True, False])
async def test_what_cannot_be_encoded_ends_its_own_call_at_once(call, online):
    rig = Rig(online=online)
    _, future = rig.call(call)
    rig.link.become(LinkPhase.READY)
    with pytest.raises(InvalidRequest, match="cannot be encoded"):
        await bounded(future)
    assert rig.connection.num_open == 0 and rig.link.sent == []


async def test_a_time_limit_may_be_infinite():
    rig = Rig()
    rig.connection.settings.timeout_s = float("inf")
    for call in (host_calls.counters(), model_calls.evict("tiny", float("inf")), model_calls.evict("tiny", 1e300)):
        rig.call(call)
    assert [envelope.deadline_ms for envelope, _ in rig.link.sent] == [0, 0, 0]
    rig.connection.close()


async def test_what_a_full_pipe_kept_is_not_sent_twice_after_a_break():
    rig = Rig()
    rig.link.is_full = True
    rig.complete()
    rig.link.become(LinkPhase.ABSENT)
    rig.link.is_full = False
    rig.link.become(LinkPhase.READY)
    await asyncio.sleep(0.05)
    assert rig.link.kinds() == ["resume"], "the stream asks; a host that knows nothing says so"


async def test_a_stream_is_collected():
    rig = Rig()
    ref, future = rig.complete()
    rig.link.receive("accepted", ref, Accepted(incarnation="a", prompt=pack_tokens([1]), seed=1))
    rig.link.receive("tokens", ref, Tokens(first_index=0, ids=pack_tokens([2, 3]), parts=[Part("text", "ab")]))
    rig.link.receive("done", ref, Done(finish_reason="stop", generated=2))
    done = await bounded(future)
    assert (done.text, done.tokens, done.finish_reason) == ("ab", [1, 2, 3], "stop")


async def test_hints_reach_what_concerns_that_model():
    rig = Rig()
    rig.call(model_calls.tokenize("tiny", "x", True, False))
    rig.call(model_calls.tokenize("other", "x", True, False))
    rig.call(host_calls.counters())
    rig.link.receive("moved", "", Moved(incarnation="b"), model="tiny")
    again = rig.link.sent[3:]
    assert [(envelope.kind, envelope.model) for envelope, _ in again] == [("tokenize", "tiny")]


async def test_messages_that_cannot_be_read_hurt_nobody(caplog):
    rig = Rig()
    ref, future = rig.call(host_calls.counters())
    rig.link.receive_frames([b"\xff\xff"])
    rig.link.receive_frames([encode_envelope(Envelope(PROTOCOL_VERSION, "reply", ref)), b"\xc1"])
    rig.link.receive("reply", ref, {"counters": 5})
    rig.link.receive("a kind of the future", ref, c.Counters())
    rig.link.receive("reply", new_ref(), c.Counters())
    rig.link.receive("reply", ref, c.Counters(counters={"a": 1.0}))
    assert (await bounded(future)).counters == {"a": 1.0}
    assert len(caplog.records) == 3


async def test_another_protocol_version_ends_everything_with_that_reason():
    rig = Rig()
    _, call = rig.call(host_calls.counters())
    _, stream = rig.complete()
    frame = msgspec.msgpack.encode([99, "reply", "", "", 0, b""])
    rig.link.receive_frames([frame, b""])
    for future in (call, stream):
        with pytest.raises(ProtocolMismatch):
            await bounded(future)


async def test_close_cancels_and_fails_what_is_open():
    rig = Rig()
    _, call = rig.call(host_calls.counters())
    _, stream = rig.complete()
    rig.connection.close()
    rig.connection.close()
    for future in (call, stream):
        with pytest.raises(HostUnavailable, match="closed"):
            await bounded(future)
    assert rig.link.kinds() == ["counters", "infer", "cancel"]
    assert rig.link.closed
    _, late = rig.call(host_calls.counters())
    with pytest.raises(HostUnavailable, match="closed"):
        await bounded(late)
