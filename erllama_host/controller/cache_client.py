"""The controller's line to the cache daemon: calls handed on, and a ping that shows whether it lives."""

from typing import Any

import zmq

from erllama_host.controller.asks import Asks
from erllama_host.errors import ErllamaError, HostUnavailable
from erllama_host.ids import new_routing_id
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, decode_envelope, encode_envelope
from erllama_host.protocol.calls import CacheAnswer, CacheCall
from erllama_host.protocol.envelope import encode_body
from erllama_host.transport.pump import Pump
from erllama_host.transport.sockets import connection_monitor, dealer, is_up

CALL_TIMEOUT_S = 10.0


class CacheClient:
    """A DEALER to cache.sock; while the daemon is away calls fail at once and nothing else happens."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._asks = Asks()
        socket = dealer(context, new_routing_id())
        # A daemon that comes back must not find the questions of an hour: only what a connection takes is sent.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket = socket
        self._monitor = Pump(connection_monitor(socket), self._on_connection)
        socket.connect(endpoint)
        self._pump = Pump(socket, self._on_message)

    def start(self) -> None:
        """Begin to listen."""
        self._pump.start()
        self._monitor.start()

    def close(self) -> None:
        """Close the socket."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._pump.close()

    async def call(
        self, op: str, arguments: dict[str, Any] | None = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[str, Any]:
        """One operation of the `cache` call; raises what the daemon answers, HostUnavailable or Timeout."""
        body = encode_body(CacheCall(op=op, arguments=arguments or {}))
        answer = await self._asks.ask(lambda ref: self._send("cache", ref, body), timeout_s, "the cache daemon")
        return decode_body("cache", answer, CacheAnswer).result

    async def ping(self, timeout_s: float) -> bool:
        """Whether the daemon answers."""
        try:
            await self._asks.ask(lambda ref: self._send("k.ping", ref, b""), timeout_s, "the cache daemon")
        except ErllamaError:
            return False
        return True

    def _send(self, kind: str, ref: str, body: bytes) -> bool:
        return self._pump.send([encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref)), body])

    def _on_connection(self, event: list[bytes]) -> None:
        """What a daemon was asked that is gone, nobody will answer."""
        if not is_up(event):
            self._asks.give_up(error=HostUnavailable("the cache daemon ended before it answered", retry_after_s=1.0))

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            envelope = decode_envelope(frames[0])
        except ErllamaError:
            return
        self._asks.answered(envelope.ref, envelope.kind, frames[1] if len(frames) > 1 else b"")
