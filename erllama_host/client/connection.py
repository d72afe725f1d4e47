"""Everything a client has under way with one host: the shell around `StreamState` and `CallState`.

Owns the link and the table of open exchanges; all of it on one asyncio loop, whose thread makes every call here. The pure
halves decide; this file sends, sets timers and hands results to listeners, which must not block.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Protocol

from erllama_host.client.actions import Action, Deliver, End, Fail, Notify, Send
from erllama_host.client.call_state import Call, CallState
from erllama_host.client.infer_options import InferRequest
from erllama_host.client.limits import Patience, StreamLimits
from erllama_host.client.results import Piece
from erllama_host.client.stream_state import StreamState
from erllama_host.errors import ErllamaError, HostUnavailable, InvalidRequest, ProtocolMismatch
from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_body,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.protocol.kinds import EVENT_KINDS
from erllama_host.transport.client_link import ClientLink, LinkPhase
from erllama_host.transport.sockets import Frames

_log = logging.getLogger(__name__)
_SEND_AGAIN_S = 0.02
_CLOSED = "this client is closed"
_CANNOT_BE_ENCODED = (TypeError, ValueError, OverflowError, RecursionError)
"""Values of no type of the wire, half surrogates, integers of more than 64 bits, maps inside themselves."""
_NO_LIMIT_S = 1e9


class Listener(Protocol):
    """Whoever waits for an exchange. Called on the loop's thread; ends with one `end` or `fail`."""

    def deliver(self, pieces: tuple[Piece, ...]) -> None:
        """More of a stream."""

    def notify(self, event: Any) -> None:
        """Progress."""

    def end(self, result: Any) -> None:
        """The result."""

    def fail(self, error: ErllamaError) -> None:
        """The error."""


@dataclass(eq=False)
class _Exchange:
    """One open ref."""

    state: StreamState | CallState
    listener: Listener
    model: str
    started_at: float
    deadline: float | None
    timer: asyncio.TimerHandle | None = None
    due: float = float("inf")


@dataclass
class Presence:
    """What is known of the host's presence. `offline_since` is meaningless while ready."""

    phase: LinkPhase = LinkPhase.ABSENT
    was_online: bool = False
    offline_since: float = 0.0

    @property
    def online(self) -> bool:
        """Whether messages reach somebody."""
        return self.phase is LinkPhase.READY


@dataclass
class Settings:
    """What a client was made with. `timeout_s` bounds calls, not streams."""

    endpoint: str
    timeout_s: float = 60.0
    patience: Patience = field(default_factory=Patience)
    limits: StreamLimits = field(default_factory=StreamLimits)


class Connection:
    """A client's only way to its host."""

    def __init__(self, link: ClientLink, settings: Settings) -> None:
        """Connects at once, on the running loop."""
        self.settings = settings
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, _Exchange] = {}
        self._presence = Presence(offline_since=self._loop.time())
        self._unsent: list[tuple[str, Send]] = []
        self.closed = False
        link.open(self._on_message, self._on_phase)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop it lives on."""
        return self._loop

    @property
    def num_open(self) -> int:
        """Exchanges under way."""
        return len(self._open)

    # ---- what callers do -----------------------------------------------------------------------------------------

    def call(self, ref: str, call: Call[Any], listener: Listener) -> None:
        """Start a call under `ref`."""
        now = self._loop.time()
        deadline = now + (self.settings.timeout_s if call.timeout_s is None else call.timeout_s)
        exchange = _Exchange(CallState(ref, call, deadline), listener, call.model, now, deadline)
        self._start(exchange, now)

    def stream(self, ref: str, model: str, request: InferRequest, limits: StreamLimits, listener: Listener) -> None:
        """Start a stream under `ref`."""
        now = self._loop.time()
        deadline = None if request.deadline_s is None else now + request.deadline_s
        state = StreamState(ref, request.body, limits, deadline)
        self._start(_Exchange(state, listener, model, now, deadline), now)

    def read(self, ref: str, num_tokens: int) -> None:
        """The reader of `ref` took `num_tokens`."""
        exchange = self._open.get(ref)
        if exchange is not None and isinstance(exchange.state, StreamState):
            now = self._loop.time()
            self._perform(exchange, exchange.state.on_read(num_tokens, now), now)

    def cancel(self, ref: str) -> None:
        """Ask for the end of a stream; an unknown ref is fine."""
        exchange = self._open.get(ref)
        if exchange is not None and isinstance(exchange.state, StreamState):
            now = self._loop.time()
            self._perform(exchange, exchange.state.cancel(now), now)

    def cancel_any(self, model: str, ref: str) -> None:
        """Cancel a stream by its ref alone, also one that is over or was abandoned here; fire and forget."""
        if ref in self._open:
            self.cancel(ref)
        else:
            self._transmit([encode_envelope(Envelope(PROTOCOL_VERSION, "cancel", ref, model)), encode_body(None)])

    def abandon(self, ref: str) -> None:
        """Nobody waits for `ref` any more: cancel it and forget it."""
        exchange = self._open.get(ref)
        if exchange is None:
            return
        self.cancel(ref)
        self._forget(ref)

    def close(self) -> None:
        """Cancel every stream, fail what is open, let go of the link. Idempotent. After the loop's own end: the link only."""
        if self.closed:
            return
        for ref, exchange in [] if self._loop.is_closed() else list(self._open.items()):
            self.cancel(ref)
            if ref in self._open:
                self._forget(ref)
                exchange.listener.fail(HostUnavailable(_CLOSED))
        self.closed = True
        self._link.close()

    # ---- what the link says --------------------------------------------------------------------------------------

    def _on_phase(self, phase: LinkPhase) -> None:
        if self._presence.phase is LinkPhase.REFUSED and phase is not LinkPhase.READY:
            return  # it is tried over and over, and refused every time
        now = self._loop.time()
        was_online, self._presence.phase = self._presence.online, phase
        if was_online and phase is not LinkPhase.READY:
            self._presence.offline_since = now
            self._unsent.clear()
        self._presence.was_online |= phase is LinkPhase.READY
        for exchange in list(self._open.values()):
            if phase is LinkPhase.READY:
                self._perform(exchange, exchange.state.on_online(now), now)
            elif was_online:
                self._perform(exchange, exchange.state.on_offline(now), now)
            else:
                self._arm(exchange)

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            envelope = decode_envelope(frames[0])
            self._route(envelope, frames[1] if len(frames) > 1 else b"")
        except ProtocolMismatch as error:
            self._fail_all(error)
        except ErllamaError as error:
            _log.warning("a message of the host cannot be read: %s", error.message)

    def _route(self, envelope: Envelope, body: bytes) -> None:
        now = self._loop.time()
        if envelope.kind == "moved":
            event = decode_body("moved", body, EVENT_KINDS["moved"])
            for exchange in [e for e in self._open.values() if e.model == envelope.model]:
                self._perform(exchange, exchange.state.on_event(event, now), now)
            return
        found = self._open.get(envelope.ref)
        if found is None:
            return
        body_type = EVENT_KINDS.get(envelope.kind)
        if envelope.kind == "reply" and isinstance(found.state, CallState):
            body_type = found.state.call.answer_type
        if body_type is not None:
            event = decode_body(envelope.kind, body, body_type)
            self._perform(found, found.state.on_event(event, now), now)

    def _fail_all(self, error: ErllamaError) -> None:
        for exchange in list(self._open.values()):
            self._perform(exchange, exchange.state.give_up(error), self._loop.time())

    # ---- exchanges -----------------------------------------------------------------------------------------------

    def _start(self, exchange: _Exchange, now: float) -> None:
        if self.closed:
            exchange.listener.fail(HostUnavailable(_CLOSED))
            return
        self._open[exchange.state.ref] = exchange
        self._perform(exchange, exchange.state.start(now, self._presence.online), now)

    def _perform(self, exchange: _Exchange, actions: list[Action], now: float) -> None:
        for action in actions:
            match action:
                case Send():
                    self._send(exchange, action, now)
                case Deliver():
                    exchange.listener.deliver(action.pieces)
                case Notify():
                    exchange.listener.notify(action.event)
                case End():
                    self._forget(exchange.state.ref)
                    exchange.listener.end(action.result)
                case Fail():
                    self._forget(exchange.state.ref)
                    exchange.listener.fail(action.error)
        self._arm(exchange)

    def _forget(self, ref: str) -> None:
        exchange = self._open.pop(ref, None)
        if exchange is not None and exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None

    def _arm(self, exchange: _Exchange) -> None:
        """Have the timer go off when something is due; one that would go off too early is left, it sets itself anew."""
        if exchange.state.ref not in self._open:
            return
        due = min(exchange.state.wake_at(), self._give_up_at(exchange))
        if exchange.timer is not None:
            if due >= exchange.due:
                return
            exchange.timer.cancel()
        exchange.due = due
        exchange.timer = self._loop.call_at(due, self._on_timer, exchange)

    def _on_timer(self, exchange: _Exchange) -> None:
        now = self._loop.time()
        exchange.timer = None
        if now >= self._give_up_at(exchange):
            self._perform(exchange, exchange.state.give_up(self._unavailable()), now)
        else:
            self._perform(exchange, exchange.state.on_tick(now), now)

    def _give_up_at(self, exchange: _Exchange) -> float:
        seen = self._presence
        if seen.online:
            return float("inf")
        if seen.phase is LinkPhase.REFUSED:
            return exchange.started_at
        return self.settings.patience.give_up_at(
            exchange.started_at, seen.offline_since, seen.was_online, seen.phase is LinkPhase.ACCEPTED
        )

    def _unavailable(self) -> HostUnavailable:
        endpoint = self.settings.endpoint
        if self._presence.phase is LinkPhase.REFUSED:
            text = f"the host at {endpoint} refuses this key; its operator adds keys with `erllama keys new NAME`"
        elif self._presence.phase is LinkPhase.ACCEPTED:
            text = f"the host at {endpoint} accepts connections but does not answer; `erllama doctor` may tell why"
        else:
            text = f"no host answers at {endpoint}; start one with `erllama up -d`, or set ERLLAMA_ENDPOINT"
        return HostUnavailable(text, endpoint=endpoint)

    # ---- sending -------------------------------------------------------------------------------------------------

    def _send(self, exchange: _Exchange, message: Send, now: float) -> None:
        ref = exchange.state.ref
        try:
            frames = self._frames(exchange, message, now)
        except _CANNOT_BE_ENCODED as error:
            # Raised from here it would end in the loop's log, and the caller would wait for ever.
            refusal = InvalidRequest(f"{message.kind}: the request cannot be encoded: {error}")
            self._perform(exchange, exchange.state.give_up(refusal), now)
            return
        # What is sent goes behind what waits already: a `cancel` must not overtake its `infer`.
        if (self._unsent or not self._transmit(frames)) and self._presence.online:
            if not self._unsent:
                self._loop.call_later(_SEND_AGAIN_S, self._send_unsent)
            self._unsent.append((ref, message))

    def _frames(self, exchange: _Exchange, message: Send, now: float) -> Frames:
        left_ms = _left_ms(exchange.deadline, now)
        envelope = Envelope(PROTOCOL_VERSION, message.kind, exchange.state.ref, exchange.model, left_ms)
        return [encode_envelope(envelope), encode_body(message.body)]

    def _transmit(self, frames: Frames) -> bool:
        return not self.closed and self._link.send(frames)

    def _send_unsent(self) -> None:
        """The pipe was full, or not quite there yet: try again. What the pipe's end lost is sent anew by `on_online`."""
        waiting, self._unsent = self._unsent, []
        for ref, message in waiting:
            exchange = self._open.get(ref)
            if exchange is not None:
                self._send(exchange, message, self._loop.time())


def _left_ms(deadline: float | None, now: float) -> int:
    """What is left until `deadline`, at least 1 ms; 0 when there is none, or none that anybody will see."""
    if deadline is None or deadline - now > _NO_LIMIT_S:
        return 0
    return max(1, int(1000 * (deadline - now)))
