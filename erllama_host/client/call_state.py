"""One call (a request with a single answer) through loading models and lost connections. Pure: time in, actions out.

A call is sent again when its answer may have been lost: after a reconnect, and when the model's worker has changed. Calls that
must not happen twice are not; they end with an error that says so. `load_model` may: its request_id makes that safe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from erllama_host.client.actions import Action, End, Fail, Notify, Send
from erllama_host.client.limits import spread
from erllama_host.errors import ErllamaError, HostUnavailable, ModelLoading, Timeout, from_wire
from erllama_host.ids import HOST_TARGET
from erllama_host.protocol.calls import Ok
from erllama_host.protocol.inference import ErrorBody, Moved
from erllama_host.protocol.kinds import HOST_KINDS, MODEL_KINDS

T = TypeVar("T")

ONCE = frozenset({"restart", "load_adapter", "fork", "drain"})
"""Kinds that are not sent again: doing them twice is not the same as doing them once."""
_RETRY_S = 0.5
_MAX_RETRY_S = 5.0


@dataclass(frozen=True)
class Call(Generic[T]):
    """What to ask, and how to read the answer.

    Attributes:
        kind: a row of kinds.py. model: the model asked; empty for the host. body: None is all defaults.
        timeout_s: of this call; None takes the client's.
        wait_while_loading: whether `ModelLoading` is waited out.
    """

    kind: str
    read: Callable[[Any], T]
    model: str = ""
    body: Any = None
    timeout_s: float | None = None
    wait_while_loading: bool = True

    @property
    def target(self) -> str:
        """What a ref of this call begins with."""
        return self.model or HOST_TARGET

    @property
    def answer_type(self) -> type[Any]:
        """Type of the reply's body."""
        answer = (MODEL_KINDS if self.model else HOST_KINDS)[self.kind].answer
        assert answer is not None, f"{self.kind} has no reply"
        return answer


class CallState:
    """State of one call; owned by the connection, on one thread. Ends with exactly one `End` or `Fail`."""

    def __init__(self, ref: str, call: Call[Any], deadline: float) -> None:
        """`deadline` is on the clock of all `now` arguments."""
        self.ref = ref
        self.call = call
        self.deadline = deadline
        self._online = self._sent = self._repeated = self._ended = False
        self._retry_at: float | None = None
        self._refusal: ErllamaError | None = None

    def start(self, now: float, online: bool) -> list[Action]:
        """Send the call, now or as soon as there is a connection."""
        self._online = online
        return self._send() if online else []

    def on_online(self, now: float) -> list[Action]:
        """The connection stands (again)."""
        self._online = True
        if self._ended or self._retry_at is not None:
            return []
        return self._send_again() if self._sent else self._send()

    def on_offline(self, now: float) -> list[Action]:
        """The connection broke."""
        self._online = False
        return []

    def on_event(self, event: Any, now: float) -> list[Action]:
        """Take the reply, an error, progress, or the hint that the model has moved."""
        if self._ended:
            return []
        match event:
            case ErrorBody():
                return self._on_error(event, now)
            case Moved():
                return self._on_moved(event)
        if isinstance(event, self.call.answer_type):
            self._ended = True
            return [End(event)]
        return [Notify(event)]

    def on_tick(self, now: float) -> list[Action]:
        """Do what is due by now."""
        if self._ended:
            return []
        if now >= self.deadline:
            return self.give_up(self._refusal or self._late())
        if self._retry_at is not None and now >= self._retry_at and self._online:
            self._retry_at = None
            return self._send()
        return []

    def wake_at(self) -> float:
        """When `on_tick` has something to do."""
        if self._ended:
            return float("inf")
        retry_at = self._retry_at if self._retry_at is not None and self._online else float("inf")
        return min(self.deadline, retry_at)

    def give_up(self, error: ErllamaError) -> list[Action]:
        """End with `error`, unless it has ended."""
        if self._ended:
            return []
        self._ended = True
        return [Fail(error)]

    def _on_error(self, event: ErrorBody, now: float) -> list[Action]:
        error = from_wire(event.code, event.message, event.details)
        if isinstance(error, ModelLoading) and self.call.wait_while_loading:
            self._refusal = error
            wait_s = min(_RETRY_S if error.retry_after_s is None else error.retry_after_s, _MAX_RETRY_S)
            self._retry_at = now + wait_s * (1 + 0.25 * spread(self.ref))
            return []
        if event.code == "ModelNotLoaded" and self._repeated and self.call.kind == "unload":
            self._ended = True
            return [End(Ok())]  # the first one did it, and its answer was lost
        return self.give_up(error)

    def _on_moved(self, event: Moved) -> list[Action]:
        if not event.incarnation or not self._online or not self._sent:
            return []
        if self._retry_at is not None:  # it was refused while the model loaded: nothing has been done
            self._retry_at = None
            return self._send()
        return self._send_again()

    def _send(self) -> list[Action]:
        self._sent = True
        return [Send(self.call.kind, self.call.body)]

    def _send_again(self) -> list[Action]:
        if self.call.kind in ONCE:
            text = f"the connection was lost during {self.call.kind}; it may or may not have been done"
            return self.give_up(HostUnavailable(text))
        self._repeated = True
        return self._send()

    def _late(self) -> Timeout:
        return Timeout(f"no answer to {self.call.kind} within its time limit")
