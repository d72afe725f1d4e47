"""The conversation with the cache daemon: registration, calls and their answers, signs of life. I/O thread only.

The daemon may be away, stopped, slow or replaced at any time. A call then ends with None, never with an exception; when
nothing has been heard for `AWAY_AFTER_S` although something was asked, calls end at once instead of each waiting for its
deadline. The socket hands messages to a living connection or not at all (IMMEDIATE), so nothing piles up for a daemon that
is not there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from erllama_host.errors import ErllamaError
from erllama_host.ids import new_routing_id
from erllama_host.observability import Log
from erllama_host.protocol import cache as m
from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_body,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.protocol.inference import ErrorBody
from erllama_host.transport.sockets import connection_monitor, dealer, is_up, receive, send

HELLO_INTERVAL_S = 0.05
REFUSED_INTERVAL_S = 5.0
"""A daemon that has refused us may be replaced by one that does not."""
PING_INTERVAL_S = 0.5
AWAY_AFTER_S = 3.0
OWN_GAP_S = 1.0
"""A longer pause between two ticks means that this thread did not run: such silence is not the daemon's."""

Answered = Callable[[Any | None], None]
"""Gets the body of the reply; None: there will be none."""


@dataclass(slots=True)
class _Call:
    kind: str
    answered: Answered


class DaemonLink:
    """One worker's connection to the daemon."""

    def __init__(self, endpoint: str, hello: Callable[[], m.WorkerRegister], log: Log) -> None:
        """
        Args:
            hello: makes the registration, anew each time, since it names the files in use.
        """
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = dealer(self._context, new_routing_id())
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.monitor = connection_monitor(self.socket)
        self.socket.connect(endpoint)
        self._hello = hello
        self._log = log
        self._calls: dict[str, _Call] = {}
        self._next_ref = 0
        self._model = hello().model_id
        self._next_hello_s = 0.0
        self._next_ping_s = 0.0
        self._last_tick_s = time.monotonic()
        self._unanswered_since_s: float | None = None
        self.registered: m.Registered | None = None
        self.refused = ""
        """Why the daemon does not take us; empty while it does, or is away."""
        self.on_forget: Callable[[m.Forget], None] = _ignore
        self.on_replaced: Callable[[], None] = _do_nothing
        """Called when another daemon than before has taken the registration."""
        self._daemon = ""

    @property
    def connected(self) -> bool:
        """Whether a call has a chance to be answered."""
        return self.registered is not None and not self._is_silent(time.monotonic())

    def call(self, kind: str, body: Any, answered: Answered) -> None:
        """Send a request; `answered` gets the reply, however late, or None when there will be none."""
        if not self.connected or not self._send_call(kind, body, answered):
            answered(None)

    def tell(self, kind: str, body: Any) -> None:
        """Send what has no reply; lost when the daemon is away (it finds out by other means)."""
        if self.registered is not None:
            send(self.socket, self._frames(kind, "", body))

    def tick(self, now: float) -> float:
        """Say hello or ping when it is time. Returns when to be called again."""
        if now - self._last_tick_s > OWN_GAP_S and self._unanswered_since_s is not None:
            self._unanswered_since_s = now
        self._last_tick_s = now
        if self.registered is None:
            if now >= self._next_hello_s:
                self._next_hello_s = now + HELLO_INTERVAL_S
                self._send_call("k.hello", self._hello(), self._welcomed)
            return self._next_hello_s
        if now >= self._next_ping_s:
            self._next_ping_s = now + PING_INTERVAL_S
            if not self._send_call("k.ping", None, _ignore):
                self._lost()
        return self._next_ping_s

    def read(self) -> None:
        """Handle every message that has come, then what has become of the connection: a daemon's last answers still count."""
        while (frames := receive(self.socket)) is not None:
            if len(frames) == 2:
                self._handle(frames)
        while (event := receive(self.monitor)) is not None:
            if is_up(event):
                self._next_hello_s = 0.0
            else:
                self._lost()

    def bye(self, timeout_s: float) -> None:
        """Leave in order: the daemon frees everything at once. Waits for its answer, within bounds."""
        left = False

        def answered(_body: Any) -> None:
            nonlocal left
            left = True

        self.call("k.bye", None, answered)
        deadline = time.monotonic() + timeout_s
        while not left and (remaining := deadline - time.monotonic()) > 0:
            if self.socket.poll(int(remaining * 1000) + 1):
                self.read()

    def close(self) -> None:
        """Close the sockets."""
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close(linger=0)
        self._context.term()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _send_call(self, kind: str, body: Any, answered: Answered) -> bool:
        self._next_ref += 1
        ref = str(self._next_ref)
        if not send(self.socket, self._frames(kind, ref, body)):
            return False
        self._calls[ref] = _Call(kind, answered)
        if self._unanswered_since_s is None:
            self._unanswered_since_s = time.monotonic()
        return True

    def _frames(self, kind: str, ref: str, body: Any) -> list[bytes]:
        return [encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref, self._model)), encode_body(body)]

    def _handle(self, frames: list[bytes]) -> None:
        try:
            envelope = decode_envelope(frames[0])
            if envelope.kind == "k.who":
                self._lost()
            elif envelope.kind == "k.forget":
                self.on_forget(decode_body(envelope.kind, frames[1], m.Forget))
            else:
                self._answered(envelope, frames[1])
        except ErllamaError as error:
            self._log.rate_limited("cache_message_not_understood", why=error.message)
        self._unanswered_since_s = time.monotonic() if self._calls else None

    def _answered(self, envelope: Envelope, frame: bytes) -> None:
        call = self._calls.pop(envelope.ref, None)
        if call is None:
            return
        if envelope.kind == "error":
            error = decode_body("error", frame, ErrorBody)
            self._log.rate_limited("cache_call_refused", kind=call.kind, why=error.message)
            call.answered(None)
            return
        answer_type = m.CACHE_KINDS[call.kind].answer
        assert answer_type is not None
        call.answered(decode_body(call.kind, frame, answer_type))

    def _welcomed(self, body: m.Registered | None) -> None:
        if body is None:
            return
        if body.refused:
            self._refused(body.refused)
            return
        self.refused = ""
        self.registered = body
        self._next_ping_s = 0.0
        if self._daemon and body.daemon != self._daemon:
            self.on_replaced()
        self._daemon = body.daemon
        self._log.info("cache_registered", daemon=body.daemon)

    def _refused(self, why: str) -> None:
        if why != self.refused:
            self._log.error("cache_refused", why=why)
        self.refused = why
        self._next_hello_s = self._last_tick_s + REFUSED_INTERVAL_S

    def _lost(self) -> None:
        """The daemon does not know us (any more), or the connection is gone: nothing sent before will be answered."""
        if self.registered is not None:
            self._log.warning("cache_daemon_lost")
        self.registered = None
        self._next_hello_s = 0.0
        calls, self._calls = self._calls, {}
        self._unanswered_since_s = None
        for call in calls.values():
            call.answered(None)

    def _is_silent(self, now: float) -> bool:
        return self._unanswered_since_s is not None and now - self._unanswered_since_s > AWAY_AFTER_S


def _ignore(_body: Any) -> None:
    return


def _do_nothing() -> None:
    return
