"""The worker's conversation with the cache daemon, against a socket that answers by hand."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from erllama_host.observability import Log
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_envelope, encode_envelope
from erllama_host.protocol import cache as m
from erllama_host.protocol.envelope import encode_body
from erllama_host.transport.sockets import router
from workers.kv_link import REFUSED_INTERVAL_S, DaemonLink

BOUND_MS = 20_000
NOW = 0.0
"""Time stands still in these tests: what happens does not happen because it was due."""


@pytest.fixture
def endpoint(tmp_path_factory):
    return f"ipc://{tmp_path_factory.mktemp('k')}/c.sock"


@pytest.fixture
def link(endpoint):
    hello = m.WorkerRegister(model_id="tiny", pid=1, incarnation="a", namespace=bytes(32), tier="ram", block_tokens=16)
    link = DaemonLink(endpoint, lambda: hello, Log("test", stream=io.StringIO()))
    yield link
    link.close()


@contextmanager
def daemon(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """Its context ends with it: only then the socket file is free for the next one."""
    context = zmq.Context()
    socket = router(context)
    socket.bind(endpoint)
    yield socket
    context.destroy(linger=0)


def connection_changes(link: DaemonLink) -> None:
    """Take in the next piece of news about the connection."""
    assert link.monitor.poll(BOUND_MS)
    link.read()


def welcome(link: DaemonLink, socket: zmq.Socket[bytes], incarnation: str) -> None:
    connection_changes(link)
    link.tick(NOW)
    answer_hello(link, socket, m.Registered(daemon=incarnation))
    assert link.connected


def answer_hello(link: DaemonLink, socket: zmq.Socket[bytes], answer: m.Registered) -> None:
    assert socket.poll(BOUND_MS), "a hello comes with the connection"
    peer, frame, _ = socket.recv_multipart()
    envelope = decode_envelope(frame)
    assert envelope.kind == "k.hello"
    reply = Envelope(PROTOCOL_VERSION, "reply", envelope.ref)
    socket.send_multipart([peer, encode_envelope(reply), encode_body(answer)])
    assert link.socket.poll(BOUND_MS)
    link.read()


def test_a_daemon_that_died_is_missed_at_once_and_greeted_when_it_is_back(link, endpoint):
    answers, replaced = [], []
    link.on_replaced = lambda: replaced.append(True)
    link.tick(NOW)  # nobody listens yet
    with daemon(endpoint) as socket:
        welcome(link, socket, "first")
        link.call("k.ping", None, answers.append)
        assert socket.poll(BOUND_MS)
    connection_changes(link)
    assert answers == [None] and not link.connected
    link.tick(NOW)
    with daemon(endpoint) as socket:
        welcome(link, socket, "second")
    assert replaced == [True]


def test_a_daemon_that_refuses_us_is_asked_again_now_and_then_and_may_change_its_mind(link, endpoint):
    with daemon(endpoint) as socket:
        connection_changes(link)
        link.tick(NOW)
        answer_hello(link, socket, m.Registered(daemon="one", refused="blocks of another length"))
        assert (link.refused, link.connected) == ("blocks of another length", False)
        answers = []
        link.call("k.ping", None, answers.append)
        assert answers == [None], "nothing is asked of it"
        assert link.tick(NOW + 1.0) == NOW + REFUSED_INTERVAL_S and not socket.poll(0)
        link.tick(NOW + REFUSED_INTERVAL_S)
        answer_hello(link, socket, m.Registered(daemon="two"))
        assert (link.refused, link.connected) == ("", True)
