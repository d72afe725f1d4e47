"""ZeroMQ sockets as every process of the host uses them, and how to read and write them without ever blocking.

Rules, with what they prevent:
- A ROUTER has ROUTER_MANDATORY: at the default it silently drops what a peer cannot take (18 000 of 20 000 messages, measured).
- A ROUTER has ROUTER_HANDOVER: a peer that reconnects before its old connection is noticed to be gone is not locked out.
- Nobody blocks on a send: what cannot be sent is reported to the caller, who drops it and counts it; streams heal by resume.
- Message size is bounded by libzmq itself (MAXMSGSIZE), before memory is spent.
- Linger is short, so that a process leaves although its peer is gone.
"""

import sys
from collections.abc import Sequence

import zmq

from erllama_host.protocol.envelope import MAX_BODY_BYTES, MAX_ENVELOPE_BYTES

DEFAULT_HIGH_WATER_MARK = 20_000
LINGER_MS = 500
RECONNECT_MS = 20
MAX_RECONNECT_MS = 50
"""On one machine: what has died is back within 0.2 s, and a pause that doubles to 500 ms would sleep through that. Asking a socket
file takes 0.13 ms: 0.3 % of a core for as long as nobody is there."""
MAX_TCP_RECONNECT_MS = 500
TCP_HEARTBEAT_MS = 3_000
TCP_HEARTBEAT_TIMEOUT_MS = 12_000

# Every message of the host passes through `send` and `receive`. Plain numbers, since operations on pyzmq's flags run in Python, and
# frame by frame, since send_multipart and recv_multipart look at each frame twice: 6.7 µs for both ends instead of 9.3.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)

Frames = Sequence[bytes]


def router(
    context: zmq.Context[zmq.Socket[bytes]], high_water_mark: int = DEFAULT_HIGH_WATER_MARK
) -> zmq.Socket[bytes]:
    """A ROUTER, not yet bound. `high_water_mark`: messages one slow peer may leave unread."""
    socket = context.socket(zmq.ROUTER)
    _common(socket, high_water_mark)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    return socket


def dealer(
    context: zmq.Context[zmq.Socket[bytes]], routing_id: bytes, high_water_mark: int = DEFAULT_HIGH_WATER_MARK
) -> zmq.Socket[bytes]:
    """A DEALER under a routing id (`ids.new_routing_id`), not yet connected. It reconnects by itself, again and again."""
    socket = context.socket(zmq.DEALER)
    _common(socket, high_water_mark)
    socket.setsockopt(zmq.ROUTING_ID, routing_id)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
    return socket


def _common(socket: zmq.Socket[bytes], high_water_mark: int) -> None:
    socket.setsockopt(zmq.SNDHWM, high_water_mark)
    socket.setsockopt(zmq.RCVHWM, high_water_mark)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_BODY_BYTES + MAX_ENVELOPE_BYTES)
    # Meaningful over tcp: a peer whose machine vanished is noticed.
    socket.setsockopt(zmq.HEARTBEAT_IVL, TCP_HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, TCP_HEARTBEAT_TIMEOUT_MS)


def send(socket: zmq.Socket[bytes], frames: Frames) -> bool:
    """Send one message without blocking; False when it cannot be sent: no such peer (any more), or its pipe is full."""
    try:
        for frame in frames[:-1]:
            socket.send(frame, _NOW_AND_MORE)
        socket.send(frames[-1], _NOW)
    except zmq.Again:
        return False
    except zmq.ZMQError as error:
        if error.errno in (zmq.EHOSTUNREACH, zmq.EFSM):
            return False
        raise
    return True


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The next message, or None when none is there.

    Asks first: finding nothing by an exception takes up to 100 µs beside a busy thread, asking takes one.
    """
    if not int(socket.getsockopt(zmq.EVENTS)) & _READABLE:
        return None
    try:
        frames = [socket.recv(_NOW)]
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(_NOW))
    except zmq.Again:
        return None
    return frames


def connection_monitor(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that tells when connections of `socket` come and go; read it with `receive` and `is_up`.

    Ask for it before `connect`. Close it, after `disable_monitor` of `socket`.
    """
    return socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)


def is_up(event: Frames) -> bool:
    """Whether an event of a connection monitor is a beginning: messages find their way from now on. Else it is an end."""
    return int.from_bytes(event[0][:2], sys.byteorder) == zmq.EVENT_HANDSHAKE_SUCCEEDED
