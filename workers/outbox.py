"""What leaves the worker: envelope and body onto the DEALER, never waiting. Owner of the sending side: the service thread."""

from typing import Any

import zmq

from erllama_host.errors import ErllamaError
from erllama_host.observability import Log
from erllama_host.protocol.envelope import PROTOCOL_VERSION, Envelope, encode_body, encode_envelope
from erllama_host.protocol.inference import error_body
from erllama_host.transport.sockets import send

CONTROLLER = b""
"""The `peer` of messages to the controller itself."""


class Outbox:
    """Sends to the controller, which passes on what has a `peer`."""

    def __init__(self, socket: "zmq.Socket[bytes]", model_id: str, log: Log) -> None:
        self._socket = socket
        self._model_id = model_id
        self._log = log
        self.num_dropped = 0

    def send(self, peer: bytes, ref: str, kind: str, body: Any = None) -> None:
        """Send one message. With the pipe full it is dropped and counted: the client will ask again."""
        envelope = Envelope(PROTOCOL_VERSION, kind, ref, self._model_id, 0, peer)
        if not send(self._socket, [encode_envelope(envelope), encode_body(body)]):
            self.num_dropped += 1
            self._log.rate_limited("message_dropped", kind=kind, ref=ref, dropped=self.num_dropped)

    def error(self, peer: bytes, ref: str, error: ErllamaError) -> None:
        """Send an error as the end of a request."""
        self.send(peer, ref, "error", error_body(error))
