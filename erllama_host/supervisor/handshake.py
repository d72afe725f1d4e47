"""The question "who is there?", asked without the client library. Blocking; for start, stop and tests of readiness."""

import zmq

from erllama_host.errors import ErllamaError
from erllama_host.ids import new_ref, new_routing_id
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, decode_envelope, encode_envelope
from erllama_host.protocol.calls import Drain, HostHello
from erllama_host.protocol.envelope import encode_body
from erllama_host.transport.sockets import dealer


def ask_hello(endpoint: str, timeout_s: float = 1.0) -> HostHello | None:
    """The host's answer to `hello`, or None when none comes in time."""
    body = _ask(endpoint, "hello", b"", timeout_s)
    return decode_body("hello", body, HostHello) if body is not None else None


def ask_drain(endpoint: str, drain_s: float, timeout_s: float) -> bool:
    """Ask the host to let requests finish and to save; False when it does not answer in time."""
    return _ask(endpoint, "drain", encode_body(Drain(timeout_s=drain_s)), timeout_s) is not None


def _ask(endpoint: str, kind: str, body: bytes, timeout_s: float) -> bytes | None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = dealer(context, new_routing_id())
    socket.setsockopt(zmq.LINGER, 0)
    try:
        socket.connect(endpoint)
        ref = new_ref()
        socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref)), body])
        if not socket.poll(round(timeout_s * 1000)):
            return None
        frames = socket.recv_multipart()
        envelope = decode_envelope(frames[0])
        return frames[1] if envelope.kind == "reply" and envelope.ref == ref else None
    except ErllamaError:
        return None
    finally:
        socket.close()
        context.term()
