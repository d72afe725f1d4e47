"""The sockets that clients see: local (ipc) and, with keys, remote (tcp). Reads requests, sends replies; decides nothing.

A client is addressed by its *peer*: one byte for the socket it came by, then its routing id. Workers copy it into their replies, so
that the controller needs no table to bring them back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from erllama_host.errors import ErllamaError, InvalidRequest
from erllama_host.observability import Log
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_envelope, encode_envelope
from erllama_host.protocol.envelope import encode_body
from erllama_host.protocol.inference import error_body
from erllama_host.protocol.kinds import Role
from erllama_host.transport.pump import Pump

LOCAL, REMOTE = b"l", b"r"


@dataclass(frozen=True)
class Request:
    """One message of a client. `role`: what it may do; local ones may do everything."""

    peer: bytes
    envelope: Envelope
    body: bytes
    role: Role = "admin"
    remote: bool = False


class Front:
    """Owner of the client sockets and of what is counted about them."""

    def __init__(self, log: Log, on_request: Callable[[Request], None]) -> None:
        self._log = log
        self._on_request = on_request
        self._pumps: dict[bytes, Pump] = {}
        self.num_dropped = 0
        self.errors: dict[str, int] = {}

    def open_local(self, socket: zmq.Socket[bytes]) -> None:
        """Serve the ipc socket."""
        self._pumps[LOCAL] = Pump(socket, lambda frames: self._take(LOCAL, "admin", frames))
        self._pumps[LOCAL].start()

    def open_remote(
        self,
        socket: zmq.Socket[bytes],
        read: Callable[[zmq.Socket[bytes]], list[bytes] | None],
        role_of: Callable[[bytes], Role],
    ) -> None:
        """Serve the tcp socket; `read` puts the authenticated user before the frames, `role_of` gives the user's role."""
        self._pumps[REMOTE] = Pump(socket, lambda frames: self._take(REMOTE, role_of(frames[0]), frames[1:]), read)
        self._pumps[REMOTE].start()

    def close(self) -> None:
        """Close the sockets."""
        for pump in self._pumps.values():
            pump.close()

    def send(self, peer: bytes, kind: str, ref: str, body: bytes, model: str = "") -> bool:
        """Send to a client; one that is gone or does not read loses the message, and asks again by `resume`."""
        pump = self._pumps.get(peer[:1])
        envelope = encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref, model))
        if pump is not None and pump.send((peer[1:], envelope, body)):
            return True
        self.num_dropped += 1
        return False

    def reply(self, request: Request, body: Any, kind: str = "reply") -> None:
        """Answer a request, or send an event of it."""
        self.send(request.peer, kind, request.envelope.ref, encode_body(body), request.envelope.model)

    def refuse(self, request: Request, error: ErllamaError) -> None:
        """Answer a request with an error."""
        self.errors[error.code] = self.errors.get(error.code, 0) + 1
        self.reply(request, error_body(error), "error")

    def _take(self, socket: bytes, role: Role, frames: list[bytes]) -> None:
        peer = socket + frames[0]
        try:
            if len(frames) != 3:
                raise InvalidRequest(f"a message has two frames, envelope and body; this one had {len(frames) - 1}")
            envelope = decode_envelope(frames[1])
        except ErllamaError as error:
            self._log.rate_limited("bad_message", error=error.message)
            self.refuse(Request(peer, Envelope(PROTOCOL_VERSION, "", ""), b""), error)
            return
        self._on_request(Request(peer, envelope, frames[2], role, socket == REMOTE))
