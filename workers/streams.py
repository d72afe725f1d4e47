"""The registry of streams: what was promised to whom, what has been sent, what may be sent now. Pure.

Owner: the service thread. Every method takes events and a `now` (monotonic seconds) and returns effects: messages to clients and
commands to the engine, which the shell carries out in order.

    opening ── accept ──▶ running ── done / error ──▶ ended ── all sent ──▶ settled ── 30 s ──▶ forgotten
       └──────────────── done / error ─────────────────┘

A ref is run at most once: as long as it is remembered, a second `infer` is answered like a `resume`. Only the client that
opened a stream may steer it. Events keep their boundaries once they have been sent, so a client that asks for `next_index`
always asks at the beginning of one. Three bounds keep it small: credit (tokens the client has not asked for wait here, and
`max_ahead_tokens` beyond it the engine is told to hold), signs of life, and the number of settled and of unread streams.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from erllama_host.errors import Forbidden
from erllama_host.protocol.inference import (
    CLIENT_LOST_AFTER_S,
    INITIAL_CREDIT_TOKENS,
    MAX_AHEAD_TOKENS,
    Accepted,
    AdapterUse,
    Done,
    ErrorBody,
    Lost,
    Part,
    TokenLogprobs,
    Tokens,
    pack_tokens,
)
from workers.commands import HANDOVER, CancelRequest, Command, Generated, Hold

KEEP_SETTLED_S = 30.0
MAX_SETTLED = 256
MAX_UNREAD = 1024
"""Ended streams whose clients are slow to read; beyond it the oldest is forgotten, and its client will find it `lost`."""
MAX_EVENT_TOKENS = 64
"""Tokens of one event, however long they have waited: messages stay small."""


@dataclass(frozen=True)
class Send:
    """A message to the client `peer`."""

    peer: bytes
    ref: str
    kind: str
    body: Any


Effect: TypeAlias = Send | Command


@dataclass
class _Event:
    """A `tokens` event; grows until it has been sent."""

    first_index: int
    ids: list[int]
    parts: list[Part]
    logprobs: list[TokenLogprobs] | None

    @property
    def end(self) -> int:
        return self.first_index + len(self.ids)

    def body(self) -> Tokens:
        return Tokens(first_index=self.first_index, ids=pack_tokens(self.ids), parts=self.parts, logprobs=self.logprobs)


@dataclass
class Stream:
    """One request, from its first message until it is forgotten.

    Attributes:
        granted: index up to which tokens may be sent. sent: number of `events` sent. fixed: number of events that were sent once,
            and so keep their boundaries. end: the last event, once known.
    """

    ref: str
    peer: bytes
    attempt: int
    granted: int
    last_seen: float
    opened_at: float
    deadline: float | None = None
    accepted: Accepted | None = None
    num_tokens: int = 0
    events: list[_Event] = field(default_factory=list)
    sent: int = 0
    fixed: int = 0
    held: bool = False
    cancelling: bool = False
    end: tuple[str, Done | ErrorBody] | None = None
    end_sent: bool = False


class Streams:
    """All streams of one worker."""

    def __init__(
        self,
        incarnation: str,
        *,
        max_ahead_tokens: int = MAX_AHEAD_TOKENS,
        lost_after_s: float = CLIENT_LOST_AFTER_S,
    ) -> None:
        self._incarnation = incarnation
        self._max_ahead = max_ahead_tokens
        self._lost_after_s = lost_after_s
        self._active: dict[str, Stream] = {}
        self._opening: dict[str, Stream] = {}
        self._unread: OrderedDict[str, Stream] = OrderedDict()
        self._settled: OrderedDict[str, tuple[float, Stream]] = OrderedDict()

    # ---- what is known -------------------------------------------------------------------------------------------

    @property
    def num_active(self) -> int:
        """Requests that have not ended: the engine's load, running and waiting."""
        return len(self._active)

    def is_active(self, ref: str) -> bool:
        """Whether `ref` is known and has not ended."""
        return ref in self._active

    def find(self, ref: str) -> Stream | None:
        """The stream of `ref`, if it is remembered."""
        stream = self._active.get(ref) or self._unread.get(ref)
        if stream is None and ref in self._settled:
            return self._settled[ref][1]
        return stream

    # ---- from the client -----------------------------------------------------------------------------------------

    def open(
        self,
        ref: str,
        peer: bytes,
        now: float,
        *,
        credit: int,
        attempt: int = 0,
        start: int = 0,
        deadline: float | None = None,
    ) -> None:
        """Begin a stream that is not known yet.

        Args:
            start: index of the first token this worker will generate: what an earlier incarnation delivered.
        """
        assert self.find(ref) is None
        self._active[ref] = self._opening[ref] = Stream(
            ref,
            peer,
            attempt,
            granted=start + credit,
            last_seen=now,
            opened_at=now,
            deadline=deadline,
            num_tokens=start,
        )

    def resubmitted(self, ref: str, peer: bytes, attempt: int) -> bool:
        """A known request came again as a later attempt. Returns whether it must be run anew.

        It must when it was given up because its client seemed gone, or refused for lack of room: then it is forgotten here. Else
        what runs goes on, under the number of the later attempt: its client waits for an `accepted` of that number, and takes
        nothing before it.
        """
        stream = self._owned(ref, peer)
        if stream is None or attempt <= stream.attempt:
            return False
        if _may_run_again(stream.end):
            self._unread.pop(ref, None)
            self._settled.pop(ref, None)
            return True
        stream.attempt = attempt
        if stream.accepted is not None:
            stream.accepted = msgspec.structs.replace(stream.accepted, attempt=attempt)
        return False

    def resume(self, ref: str, peer: bytes, next_index: int, now: float) -> list[Effect]:
        """Send again from `next_index`. Also a sign of life, and fresh credit: what was granted before may have been lost."""
        stream = self.find(ref)
        if stream is None:
            return [Send(peer, ref, "lost", Lost(incarnation=self._incarnation))]
        if stream.peer != peer:
            error = Forbidden("only the client that opened a stream may resume it")
            return [Send(peer, ref, "error", ErrorBody(code=error.code, message=error.message))]
        stream.last_seen = now
        effects: list[Effect] = []
        if stream.accepted is not None:
            effects.append(Send(peer, ref, "accepted", stream.accepted))
        stream.sent = min(stream.fixed, _position(stream.events, next_index))
        stream.end_sent = False
        if stream.end is not None:
            self._settled.pop(ref, None)
            self._unread.setdefault(ref, stream)
        return effects + self._grant(stream, max(stream.granted, next_index + INITIAL_CREDIT_TOKENS), now)

    def credit(self, ref: str, peer: bytes, tokens: int, now: float) -> list[Effect]:
        """The client has read `tokens` more; 0 is a sign of life. Unknown refs and other clients are ignored."""
        stream = self._owned(ref, peer)
        if stream is None:
            return []
        stream.last_seen = now
        return self._grant(stream, stream.granted + tokens, now)

    def cancel(self, ref: str, peer: bytes, reason: str) -> list[Effect]:
        """End a stream early; the engine answers with its end. Unknown refs and other clients are ignored."""
        stream = self._owned(ref, peer)
        return self._cancel(stream, reason) if stream is not None and ref in self._active else []

    # ---- from the engine and the service -------------------------------------------------------------------------

    def accept(self, ref: str, accepted: Accepted) -> list[Effect]:
        """The request is in the queue."""
        stream = self._active.get(ref)
        if stream is None:
            return []
        if accepted.attempt != stream.attempt:  # sent again while it was being prepared
            accepted = msgspec.structs.replace(accepted, attempt=stream.attempt)
        stream.accepted = accepted
        self._opening.pop(ref, None)
        return [Send(stream.peer, ref, "accepted", accepted)]

    def admitted(self, ref: str, adapters: Iterable[AdapterUse], *, alone: bool = False) -> list[Effect]:
        """The request left the queue: tell the client where its adapter set differs, for a later resubmission, and that it runs
        alone, for the blame.
        """
        stream, chosen = self._active.get(ref), list(adapters)
        if stream is None or stream.accepted is None or (stream.accepted.adapters == chosen and not alone):
            return []
        return self.accept(ref, msgspec.structs.replace(stream.accepted, adapters=chosen, alone=alone))

    def generated(self, report: Generated, now: float) -> list[Effect]:
        """Take in tokens; they leave at once, unless the client has no credit."""
        stream = self._active.get(report.ref)
        if stream is None:
            return []
        assert report.first_index == stream.num_tokens, (report.first_index, stream.num_tokens)
        stream.num_tokens += len(report.ids)
        _append(stream, report)
        effects: list[Effect] = []
        if not stream.held and stream.num_tokens - stream.granted >= self._max_ahead:
            stream.held = True
            effects.append(Hold(stream.ref, True))
        return effects + self._send_pending(stream, now)

    def ended(self, ref: str, kind: str, body: Done | ErrorBody, now: float) -> list[Effect]:
        """The request is over: `done` or `error`. One that was cut off for a successor to go on with is not over for its client."""
        stream = self._active.pop(ref, None)
        if stream is None:
            return []
        self._opening.pop(ref, None)
        if isinstance(body, Done) and body.cancel_reason == HANDOVER:
            return []
        stream.end = (kind, body)
        self._unread[ref] = stream
        effects = self._send_pending(stream, now)
        while len(self._unread) > MAX_UNREAD:
            self._unread.popitem(last=False)
        return effects

    def end_opening(self, reason: str) -> list[Effect]:
        """Cancel what has not reached the engine yet."""
        return [effect for stream in list(self._opening.values()) for effect in self._cancel(stream, reason)]

    # ---- time ----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Effect]:
        """End what has passed its deadline before it reached the engine (which looks to the rest), forget what is old."""
        late = [one for one in self._opening.values() if one.deadline is not None and now >= one.deadline]
        effects = [effect for stream in late for effect in self._cancel(stream, "deadline")]
        while self._settled:
            settled_at, stream = next(iter(self._settled.values()))
            if now - settled_at <= KEEP_SETTLED_S:
                break
            del self._settled[stream.ref]
        return effects

    def judge_silence(self, now: float) -> list[Effect]:
        """Cancel streams without a sign of life for too long; do not keep what such clients have not read."""
        effects: list[Effect] = []
        for stream in list(self._active.values()):
            if now - stream.last_seen > self._lost_after_s:
                effects += self._cancel(stream, "lost_client")
        for ref, stream in list(self._unread.items()):
            if now - stream.last_seen > self._lost_after_s:
                self._settle(self._unread.pop(ref), now)
        return effects

    def release(self, now: float) -> list[Effect]:
        """Send what has ended to its end, whatever the credit: the process is about to leave."""
        return [
            effect
            for stream in list(self._unread.values())
            for effect in self._grant(stream, stream.num_tokens + 1, now)
        ]

    # ---- inside --------------------------------------------------------------------------------------------------

    def _owned(self, ref: str, peer: bytes) -> Stream | None:
        stream = self.find(ref)
        return stream if stream is not None and stream.peer == peer else None

    def _cancel(self, stream: Stream, reason: str) -> list[Effect]:
        if stream.accepted is None:  # the engine does not know it yet
            done = Done(finish_reason="cancelled", cancelled=True, cancel_reason=reason)
            return self.ended(stream.ref, "done", done, stream.last_seen)
        if stream.cancelling:
            return []
        stream.cancelling = True
        return [CancelRequest(stream.ref, reason)]

    def _grant(self, stream: Stream, granted: int, now: float) -> list[Effect]:
        stream.granted = granted
        effects = self._send_pending(stream, now)
        if stream.held and stream.num_tokens - granted <= self._max_ahead // 2 and stream.end is None:
            stream.held = False
            effects.append(Hold(stream.ref, False))
        return effects

    def _send_pending(self, stream: Stream, now: float) -> list[Effect]:
        """Send everything that credit allows, and the end after it."""
        effects: list[Effect] = []
        while stream.sent < len(stream.events):
            event = stream.events[stream.sent]
            if event.first_index >= stream.granted:
                break
            stream.sent += 1
            effects.append(Send(stream.peer, stream.ref, "tokens", event.body()))
        stream.fixed = max(stream.fixed, stream.sent)
        if stream.end is not None and stream.sent == len(stream.events) and not stream.end_sent:
            effects.append(Send(stream.peer, stream.ref, *stream.end))
            stream.end_sent = True
            self._settle(self._unread.pop(stream.ref), now)
        return effects

    def _settle(self, stream: Stream, now: float) -> None:
        self._settled[stream.ref] = (now, stream)
        while len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)


def _may_run_again(end: tuple[str, Done | ErrorBody] | None) -> bool:
    """Whether a stream ended for a reason that its client's coming back removes."""
    match end:
        case (_, Done(cancel_reason="lost_client")):
            return True
        case (_, ErrorBody(code="QueueFull" | "SessionBusy" | "ModelLoading")):
            return True
    return False


def _append(stream: Stream, report: Generated) -> None:
    """Add to the last event if it may still grow, else begin another."""
    logprobs = None if report.logprobs is None else list(report.logprobs)
    last = stream.events[-1] if len(stream.events) > stream.fixed else None
    if last is None or len(last.ids) + len(report.ids) > MAX_EVENT_TOKENS:
        stream.events.append(_Event(report.first_index, list(report.ids), list(report.parts), logprobs))
        return
    last.ids += report.ids
    for part in report.parts:
        if last.parts and last.parts[-1].channel == part.channel:
            last.parts[-1] = Part(part.channel, last.parts[-1].text + part.text)
        else:
            last.parts.append(part)
    if logprobs is not None:
        last.logprobs = (last.logprobs or []) + logprobs


def _position(events: list[_Event], next_index: int) -> int:
    """Position of the first event a client needs that has all tokens before `next_index`."""
    position = len(events)
    while position and events[position - 1].end > next_index:
        position -= 1
    return position
