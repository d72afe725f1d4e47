"""A client's connection to a host: one DEALER on an asyncio loop that knows whether anybody is at the other end.

IMMEDIATE: nothing is queued towards a host that is not there. What was not sent is the client's to send again (or not: the
caller may have given up by then); a message that waits in a queue for a host's return would run a request nobody wants.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import zmq

from erllama_host.errors import ConfigError
from erllama_host.ids import new_routing_id
from erllama_host.transport.pump import Pump
from erllama_host.transport.sockets import MAX_TCP_RECONNECT_MS, Frames, dealer

HIGH_WATER_MARK = 100_000
"""Messages; what a host sends is bounded by credit, and what a client sends by its open requests."""

REMEDY = "`erllama keys new NAME` on the host makes the two files that a client needs"


class LinkPhase(Enum):
    """What is known of the other end: nothing listens, it accepts but has not shaken hands, it serves, it refuses our key."""

    ABSENT = "absent"
    ACCEPTED = "accepted"
    READY = "ready"
    REFUSED = "refused"


class ClientLink(Protocol):
    """The seam between the client library and ZeroMQ. All methods on one loop; nothing blocks."""

    def open(self, on_message: Callable[[list[bytes]], None], on_phase: Callable[[LinkPhase], None]) -> None:
        """Start to connect, on the running loop. `on_phase` tells every change; each READY is a new connection."""

    def send(self, frames: Frames) -> bool:
        """Send now; False when it cannot be done."""

    def close(self) -> None:
        """Let go of the connection; what has been sent still goes out. Idempotent."""


@dataclass(frozen=True)
class CurveFiles:
    """Key files of a remote connection: the client's own secret key file and the server's public one."""

    key_file: Path
    server_key_file: Path


class ZmqLink:
    """The real one."""

    def __init__(self, endpoint: str, curve: CurveFiles | None = None) -> None:
        """`endpoint`: `ipc://…`, or `tcp://host:port` together with `curve`.

        Raises:
            ConfigError: not an endpoint, tcp without keys, or a key file that cannot be used (certificates.py).
        """
        self._endpoint = endpoint
        self._curve = _load_keys(endpoint, curve)
        self._pump: Pump | None = None
        self._monitor: Pump | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._on_phase: Callable[[LinkPhase], None] = lambda phase: None

    def open(self, on_message: Callable[[list[bytes]], None], on_phase: Callable[[LinkPhase], None]) -> None:
        """See `ClientLink`."""
        self._on_phase = on_phase
        context = _context()
        self._socket = socket = dealer(context, new_routing_id(), HIGH_WATER_MARK)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        if self._endpoint.startswith("tcp://"):
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_TCP_RECONNECT_MS)
        for option, value in self._curve.items():
            socket.setsockopt(option, value)
        self._monitor = Pump(socket.get_monitor_socket(_WATCHED), self._on_monitor)
        self._pump = Pump(socket, on_message)
        self._monitor.start()
        self._pump.start()
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(f"endpoint {self._endpoint!r}: {error.strerror}", key="ERLLAMA_ENDPOINT") from error

    def send(self, frames: Frames) -> bool:
        """See `ClientLink`."""
        return self._pump is not None and self._pump.send(frames)

    def close(self) -> None:
        """See `ClientLink`."""
        if self._socket is not None and not self._socket.closed:
            self._socket.disable_monitor()
        for pump in (self._monitor, self._pump):
            if pump is not None:
                pump.close()
        self._pump = self._monitor = self._socket = None

    def _on_monitor(self, frames: list[bytes]) -> None:
        event, _ = struct.unpack("=HI", frames[0])
        phase = _PHASES.get(event)
        if phase is not None:
            self._on_phase(phase)


_PHASES = {
    zmq.EVENT_CONNECTED: LinkPhase.ACCEPTED,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: LinkPhase.READY,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkPhase.REFUSED,
    zmq.EVENT_DISCONNECTED: LinkPhase.ABSENT,
}
_WATCHED = sum(int(event) for event in _PHASES)

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's ZeroMQ context; a forked child gets its own, since threads do not survive a fork."""
    context = _contexts.get(os.getpid())
    if context is None:
        context = _contexts[os.getpid()] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 8192)
    return context


def _load_keys(endpoint: str, curve: CurveFiles | None) -> dict[int, bytes]:
    if not endpoint.startswith(("ipc://", "tcp://")):
        raise ConfigError(f"endpoint {endpoint!r} must begin with ipc:// or tcp://", key="ERLLAMA_ENDPOINT")
    if curve is None:
        if endpoint.startswith("tcp://"):
            raise ConfigError(
                f"endpoint {endpoint!r}: tcp needs keys; give key_file and server_key_file; {REMEDY}", key="key_file"
            )
        return {}
    from erllama_host.transport.certificates import read_key_pair, read_public_key  # only remote clients pay for it

    public, secret = read_key_pair(curve.key_file, "key_file", REMEDY)
    server = read_public_key(curve.server_key_file, "server_key_file", REMEDY)
    return {zmq.CURVE_PUBLICKEY: public, zmq.CURVE_SECRETKEY: secret, zmq.CURVE_SERVERKEY: server}
