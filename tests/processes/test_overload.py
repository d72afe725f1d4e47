"""More than a host can do at once: everybody gets an answer or `QueueFull`, nobody is forgotten, memory stays bounded."""

import time

import msgspec
import psutil
import pytest
import zmq

from erllama_host.ids import new_ref, new_routing_id
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_envelope, encode_envelope
from erllama_host.transport.sockets import dealer
from tests.support.hosts import eventually, running_host
from tests.support.limits import allow_many_descriptors

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

CLIENTS, REQUESTS = 500, 10
MODEL = "busy"


@pytest.fixture
def host():
    with running_host() as host:
        yield host


@pytest.fixture
def crowd(host):
    """Many clients in one process."""
    allow_many_descriptors()
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4096)
    sockets = []
    for _ in range(CLIENTS):
        socket = dealer(context, new_routing_id())
        socket.connect(host.endpoint)
        sockets.append(socket)
    yield sockets
    for socket in sockets:
        socket.close(0)
    context.term()


def ask(socket, max_tokens: int) -> str:
    ref = new_ref(MODEL)
    body = msgspec.msgpack.encode({"text": "hello", "max_tokens": max_tokens, "ignore_eos": True})
    socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, "infer", ref, MODEL)), body])
    return ref


def read_all(sockets, waiting: dict[str, str | None], timeout_s: float) -> None:
    """Read until every ref in `waiting` has ended; note how."""
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    give_up_at = time.monotonic() + timeout_s
    while None in waiting.values():
        assert time.monotonic() < give_up_at, f"{list(waiting.values()).count(None)} requests never ended"
        for socket, _ in poller.poll(1000):
            while socket.poll(0):
                envelope_frame, body = socket.recv_multipart()
                envelope = decode_envelope(envelope_frame)
                if envelope.kind == "done":
                    waiting[envelope.ref] = "done"
                elif envelope.kind == "error":
                    waiting[envelope.ref] = msgspec.msgpack.decode(body)["code"]


def test_a_crowd_is_served_or_told_and_memory_stays_bounded(host, crowd):
    with host.client() as client:
        client.load_stub(MODEL, token_ms=0.2, options={"max_queue": 200})
        controller = psutil.Process(host.pid_of("controller"))
        before = controller.memory_info().rss
        waiting = {ask(socket, 4): None for _ in range(REQUESTS) for socket in crowd}
        read_all(crowd, waiting, timeout_s=300)
        ends = list(waiting.values())
        assert set(ends) <= {"done", "QueueFull"}
        assert ends.count("done") >= 200 and ends.count("QueueFull") > 0
        assert controller.memory_info().rss - before < 60 << 20
        assert len(client.infer(MODEL, 5)) == 5


def test_a_client_that_does_not_read_slows_only_itself(host, crowd):
    with host.client() as client:
        client.load_stub(MODEL)
        deaf = {ask(socket, 2000): None for socket in crowd[:3]}
        for _ in range(5):
            assert len(client.infer(MODEL, 50)) == 50
        # What they did not read is bounded by their credit, and is still there.
        for socket in crowd[:3]:
            assert socket.poll(20_000)
        credit = msgspec.msgpack.encode({"tokens": 2000})
        for ref, socket in zip(deaf, crowd, strict=False):
            socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, "credit", ref, MODEL)), credit])
        read_all(crowd[:3], deaf, timeout_s=60)
        assert set(deaf.values()) == {"done"}


def test_clients_that_vanish_leave_no_work_behind(host, crowd):
    with host.client() as client:
        client.load_stub(MODEL, token_ms=50.0)
        for socket in crowd[:20]:
            ask(socket, 8000)
            socket.close(500)
        eventually(lambda: client.call("model_info", {"model_id": MODEL}).get("pending", 0) > 0, "they are at work")
        eventually(
            lambda: client.call("model_info", {"model_id": MODEL}).get("pending", 0) == 0, "their work ends with them"
        )
