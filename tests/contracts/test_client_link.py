"""What the client expects of its link, kept by the ZeroMQ one (against a ROUTER) and by the in-memory twin of the tests."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
import zmq

from erllama_host.errors import ConfigError
from erllama_host.protocol.envelope import PROTOCOL_VERSION, Envelope, decode_envelope, encode_envelope
from erllama_host.transport.client_link import CurveFiles, LinkPhase, ZmqLink
from erllama_host.transport.sockets import router
from tests.support.memory_link import MemoryLink


class ZmqSide:
    """A ROUTER at the other end."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="cl", dir="/tmp")
        self.endpoint = f"ipc://{self.directory}/s"
        self.link = ZmqLink(self.endpoint)
        self.context = zmq.Context()
        self.socket = None
        self.peer = None

    async def come(self):
        self.socket = router(self.context)
        self.socket.bind(self.endpoint)

    async def go(self):
        self.socket.close(linger=0)
        self.socket = None

    async def received(self):
        while not self.socket.poll(0):
            await asyncio.sleep(0.002)
        self.peer, envelope, body = self.socket.recv_multipart()
        return decode_envelope(envelope), body

    async def say(self, envelope, body):
        self.socket.send_multipart([self.peer, encode_envelope(envelope), body])

    def end(self):
        if self.socket is not None:
            self.socket.close(linger=0)
        self.context.term()
        shutil.rmtree(self.directory)


class MemorySide:
    """The test itself at the other end."""

    def __init__(self):
        self.link = MemoryLink()

    async def come(self):
        self.link.become(LinkPhase.ACCEPTED)
        self.link.become(LinkPhase.READY)

    async def go(self):
        self.link.become(LinkPhase.ABSENT)

    async def received(self):
        return self.link.sent.pop(0)

    async def say(self, envelope, body):
        self.link.receive_frames([encode_envelope(envelope), body])

    def end(self):
        pass


@pytest.fixture(params=[ZmqSide, MemorySide])
def side(request):
    made = request.param()
    yield made
    made.link.close()
    made.end()


class Seen:
    def __init__(self, link):
        self.messages, self.phases = [], []
        link.open(self.messages.append, self.phases.append)

    async def until(self, condition):
        async def wait():
            while not condition(self):
                await asyncio.sleep(0.002)

        await asyncio.wait_for(wait(), 20)


HELLO = Envelope(PROTOCOL_VERSION, "hello", "@host/" + "0" * 32)
READY = LinkPhase.READY


async def test_nothing_is_sent_or_kept_for_a_host_that_is_not_there(side):
    seen = Seen(side.link)
    assert side.link.send([encode_envelope(HELLO), b"1"]) is False
    await side.come()
    await seen.until(lambda s: s.phases and s.phases[-1] is READY)
    assert side.link.send([encode_envelope(HELLO), b"2"]) is True
    envelope, body = await side.received()
    assert (envelope, body) == (HELLO, b"2")


async def test_messages_come_in_order_and_all_of_them(side):
    seen = Seen(side.link)
    await side.come()
    await seen.until(lambda s: s.phases and s.phases[-1] is READY)
    side.link.send([encode_envelope(HELLO), b""])
    await side.received()
    for number in range(1000):
        await side.say(HELLO, b"%d" % number)
    await seen.until(lambda s: len(s.messages) == 1000)
    assert [body for _, body in seen.messages] == [b"%d" % n for n in range(1000)]


async def test_each_connection_is_told_and_so_is_its_end(side):
    seen = Seen(side.link)
    for count in (1, 2):
        await side.come()
        await seen.until(lambda s, count=count: s.phases.count(READY) == count)
        await side.go()
        await seen.until(lambda s: s.phases[-1] is not READY)
    assert seen.phases.count(READY) == 2


async def test_after_close_nothing_is_sent(side):
    seen = Seen(side.link)
    await side.come()
    await seen.until(lambda s: s.phases and s.phases[-1] is READY)
    side.link.close()
    side.link.close()
    assert side.link.send([encode_envelope(HELLO), b""]) is False


@pytest.mark.parametrize(
    ("endpoint", "curve", "words"),
    [
        ("http://x", None, "ipc:// or tcp://"),
        ("tcp://127.0.0.1:1", None, "tcp needs keys"),
        ("tcp://127.0.0.1:1", CurveFiles(Path("/no/me"), Path("/no/host")), "/no/me does not exist"),
    ],
)
def test_endpoints_that_cannot_be(endpoint, curve, words):
    with pytest.raises(ConfigError, match=words):
        ZmqLink(endpoint, curve)


async def test_an_endpoint_zeromq_refuses_is_a_config_error():
    link = ZmqLink("ipc:///tmp/" + "x" * 200)
    with pytest.raises(ConfigError, match="endpoint"):
        link.open(lambda frames: None, lambda phase: None)
