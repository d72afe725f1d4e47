"""One inference stream as its client sees it, through everything that can happen to a host. Pure: time comes in, actions go out.

    SUBMITTED   `infer` is on its way; no `accepted` for this attempt yet
    RUNNING     one incarnation of the worker has the request
    WAITING     nobody can take it just now (the model loads, a queue is full); tried again at `_retry_at`
    ENDED       `End` or `Fail` has been returned; everything that still comes is ignored

What keeps an answer whole, in any order of losses, repetitions and restarts:
- Ids are taken only in sequence: an event that starts at the next index is delivered, one before it is a repetition, and one
  beyond it (or across it) makes the client ask again with `resume`. So nothing is delivered twice or skipped.
- Before the `accepted` of the current attempt, tokens are not taken: they would be of an earlier life of the worker, whose
  continuation the new one does not know.
- `done` says how many ids there are and brings the text that was held back: an answer that lacks some asks again, and one whose
  rest does not come after `_MAX_REPLAYS` questions ends in an error. No answer is shorter than it should be without a word.
- Credit follows the reader. A lost grant is healed by `resume`, which grants a whole window anew; hence silence is only taken for
  a loss while the worker has credit: asking again and again on behalf of a reader who does not read would fill memory.
"""

from enum import Enum

import msgspec

from erllama_host.client.actions import Action, Deliver, End, Fail, Send
from erllama_host.client.answer import Answer, Fit
from erllama_host.client.answer import Credit as CreditWindow
from erllama_host.client.blame import Blame
from erllama_host.client.limits import StreamLimits, spread
from erllama_host.client.results import StreamEnd, stats_of
from erllama_host.errors import ErllamaError, Timeout, WorkerDied, from_wire
from erllama_host.protocol.inference import (
    Accepted,
    Cancel,
    Credit,
    Done,
    ErrorBody,
    Infer,
    Lost,
    Moved,
    Resume,
    ResumePoint,
    Tokens,
)

StreamEvent = Accepted | Tokens | Done | ErrorBody | Lost | Moved

_BUSY = ("QueueFull", "SessionBusy")
"""Refusals that a resubmission waits out: it has been admitted before, and its caller may have part of the answer."""
_AFTER_DEATH_S = 0.1
_STOOD_STILL_S = 3.0
_MAX_REPLAYS = 8
"""So many replays without a token, and the rest of an answer that has ended at the worker is given up."""


class Phase(Enum):
    """Where a stream stands; the module's header tells what each means."""

    SUBMITTED = "submitted"
    RUNNING = "running"
    WAITING = "waiting"
    ENDED = "ended"


class StreamState:
    """State of one stream; owned by the connection that opened it, on one thread.

    Every method returns the actions to carry out, in order. `wake_at` says when `on_tick` is due at the latest.
    """

    def __init__(self, ref: str, request: Infer, limits: StreamLimits, deadline: float | None = None) -> None:
        """`request` has been checked. `deadline` is on the clock of all `now` arguments; None is never."""
        self.ref = ref
        self.deadline = deadline
        self.phase = Phase.SUBMITTED
        self.num_resumes = 0
        self.answer = Answer()
        self._request = request
        self._limits = limits
        self._credit = CreditWindow(limits.window, limits.grant_at)
        self._online = self._sent = False
        self._attempt = 0
        self._accepted: Accepted | None = None
        self._live = False
        """Whether the current attempt has been accepted."""
        self._asked = False
        """Whether a `resume` of the current attempt is out: only then can a `lost` be meant for it."""
        self._blame = Blame()
        self._replays = 0
        self._started_at = self._quiet_since = self._last_sent = self._retry_at = 0.0
        self._last_asked = self._last_submitted = float("-inf")
        self._first_token_at: float | None = None
        self._cancelled_at: float | None = None

    # ---- what the caller and the connection do -------------------------------------------------------------------

    def start(self, now: float, online: bool) -> list[Action]:
        """Submit the request, now or as soon as there is a connection."""
        self._started_at = self._quiet_since = now
        self._online = online
        return self._submit(now) if online else []

    def on_online(self, now: float) -> list[Action]:
        """The connection stands (again). What was under way when it broke may be lost, both ways."""
        self._online = True
        self._quiet_since = now
        if self.phase in (Phase.ENDED, Phase.WAITING):
            return []
        if not self._sent:
            return self._submit(now)
        return self._ask(now, force=True)

    def on_offline(self, now: float) -> list[Action]:
        """The connection broke. A cancelled stream has nothing left to wait for."""
        self._online = False
        ends = self.phase is not Phase.ENDED and self._cancelled_at is not None
        return self._end_cancelled(now) if ends else []

    def on_read(self, num_tokens: int, now: float) -> list[Action]:
        """The reader took `num_tokens` more."""
        due = self._credit.read(num_tokens) and self._live and self._online and self.phase is not Phase.ENDED
        return self._grant(now) if due else []

    def cancel(self, now: float) -> list[Action]:
        """Ask for the end; the stream ends with `End`, cancelled, soon. Idempotent."""
        if self.phase is Phase.ENDED or self._cancelled_at is not None:
            return []
        self._cancelled_at = self._quiet_since = now
        if not self._online or not self._sent or self.phase is Phase.WAITING:
            return self._end_cancelled(now)
        return [self._send("cancel", Cancel(), now)]

    def give_up(self, error: ErllamaError) -> list[Action]:
        """End with `error`, unless it has ended."""
        if self.phase is Phase.ENDED:
            return []
        self.phase = Phase.ENDED
        return [Fail(error)]

    def on_tick(self, now: float) -> list[Action]:
        """Do what is due by now: time limits, retries, questions, signs of life."""
        if self.phase is Phase.ENDED:
            return []
        self._excuse_silence(now)
        if (actions := self._limits_reached(now)) is not None:
            return actions
        if not self._online:
            return []
        if self.phase is Phase.WAITING:
            return self._retry(now) if now >= self._retry_at else []
        actions = []
        if self._expecting() and now >= self._ask_at():
            actions += self._ask(now, force=True)
        if now >= self._last_sent + self._limits.sign_of_life_s:
            actions.append(self._send("credit", Credit(), now))
        return actions

    def wake_at(self) -> float:
        """When `on_tick` has something to do, if nothing happens before."""
        if self.phase is Phase.ENDED:
            return float("inf")
        times = [float("inf")]
        if self.deadline is not None:
            times.append(self.deadline + self._margin_s())
        if self._cancelled_at is not None:
            times.append(self._cancelled_at + self._limits.cancel_s)
        if self._online and self.phase is Phase.WAITING:
            times.append(self._retry_at)
        elif self._online:
            times.append(self._last_sent + self._limits.sign_of_life_s)
            if self._expecting():
                times += [self._ask_at(), self._quiet_since + self._limits.mute_s]
        return min(times)

    # ---- what comes from the host --------------------------------------------------------------------------------

    def on_event(self, event: StreamEvent, now: float) -> list[Action]:
        """Take one event of this stream, or a hint that the model has moved."""
        if self.phase is Phase.ENDED:
            return []
        match event:
            case Tokens():
                return self._on_tokens(event, now)
            case Accepted():
                return self._on_accepted(event, now)
            case Done():
                return self._on_done(event, now)
            case Lost():
                return self._on_lost(now)
            case Moved():
                return self._on_moved(event, now)
            case ErrorBody():
                return self._on_error(event, now)

    def _on_accepted(self, event: Accepted, now: float) -> list[Action]:
        if event.attempt != self._attempt:
            # An answer to our `resume` under an older number: this attempt's request never arrived. Repeating it is harmless.
            missed = self._asked and not self._live and self.phase is Phase.SUBMITTED
            again = missed and now >= self._last_submitted + self._limits.ask_again_s
            return self._submit(now) if again else []
        if self._live and self._accepted is not None and event.incarnation != self._accepted.incarnation:
            return self.give_up(WorkerDied("two lives of the model's process took this request; ask again"))
        self._quiet_since = now
        self._replays += self._live
        self._live = True
        self._accepted = event  # comes again when the request leaves the queue with other adapters, or alone
        self._blame.runs_alone = event.alone
        self.phase = Phase.RUNNING
        # Read while nobody had the request: what that would have granted is due now.
        return self.on_read(0, now)

    def _on_tokens(self, event: Tokens, now: float) -> list[Action]:
        if not self._live:
            return self._ask(now)
        self._quiet_since = now
        self.phase = Phase.RUNNING
        fit = self.answer.fit(event)
        if fit is not Fit.NEXT:
            return self._ask(now) if fit is Fit.GAP else []
        pieces = self.answer.take(event)
        if not pieces:
            return []
        if self._first_token_at is None:
            self._first_token_at = now
        self._blame.on_token()
        self._replays = 0
        return [Deliver(pieces)]

    def _on_done(self, event: Done, now: float) -> list[Action]:
        if event.cancel_reason == "lost_client" and self._cancelled_at is None and (self._live or self._asked):
            # The worker did not hear of us for too long, but here we are: the host was away, or this loop stood still.
            return self._resubmit(now, died=False)
        if not self._live:
            return self._ask(now)
        self._quiet_since = now
        missing = event.generated - self.answer.next_index
        if missing <= 0:
            return self._finish(event, now)
        if self._replays < _MAX_REPLAYS:
            return self._ask(now, force=True)
        return self.give_up(
            Timeout(f"the last {missing} tokens of the answer did not come, although they were asked for")
        )

    def _on_lost(self, now: float) -> list[Action]:
        if not self._asked or self.phase is Phase.WAITING:
            return []
        return self._resubmit(now, died=self._live)

    def _on_moved(self, event: Moved, now: float) -> list[Action]:
        if not event.incarnation or not self._online or not self._sent:
            return []
        if self.phase is Phase.WAITING:  # also for the same incarnation: a new controller did not know it before
            return self._retry(now)
        if self._live and self._accepted is not None and event.incarnation == self._accepted.incarnation:
            return []
        return self._ask(now, force=True)

    def _on_error(self, event: ErrorBody, now: float) -> list[Action]:
        error = from_wire(event.code, event.message, event.details)
        busy = event.code in _BUSY and self._attempt > 0
        if busy or event.code == "ModelLoading":
            if self._cancelled_at is not None:
                return self._end_cancelled(now)
            if busy:  # refused for good under this number, maybe after it was accepted
                self._live = False
            return self._wait(now, error.retry_after_s)
        if event.code == "WorkerDied" and self._limits.max_resumes > 0 and not error.details.get("poison"):
            return self._resubmit(now, died=True, wait_s=error.retry_after_s or _AFTER_DEATH_S)
        return self.give_up(error)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _submit(self, now: float) -> list[Action]:
        """Send the request, as this attempt; with what is known of earlier ones."""
        self.phase, self._live, self._asked, self._sent = Phase.SUBMITTED, False, False, True
        self._blame.runs_alone = False
        self._quiet_since = self._last_submitted = now
        return [self._send("infer", self._body(), now)]

    def _body(self) -> Infer:
        credit = self._credit.initial(self.answer.next_index)
        body = msgspec.structs.replace(self._request, credit=credit, attempt=self._attempt)
        if self._accepted is None:
            return body
        point = ResumePoint(
            delivered=self.answer.ids,
            seed=self._accepted.seed,
            adapters=self._accepted.adapters,
            deaths=self._blame.num_deaths,
        )
        return msgspec.structs.replace(body, text=None, chat=None, tokens=self._accepted.prompt, resume=point)

    def _resubmit(self, now: float, died: bool, wait_s: float = 0.0) -> list[Action]:
        """Nobody has the request any more: send it again as the next attempt."""
        if self._cancelled_at is not None:
            return self._end_cancelled(now)
        if died:
            self._blame.on_death()
        if self._limits.max_resumes == 0 or self._blame.num_deaths > self._limits.max_resumes:
            return self.give_up(self._died())
        self.num_resumes += 1
        self._live = False
        return self._wait(now, wait_s) if wait_s > 0 else self._submit_next(now)

    def _submit_next(self, now: float) -> list[Action]:
        """Submit under a new number: what still comes of earlier ones is of an earlier life, and not taken."""
        self._attempt += 1
        return self._submit(now)

    def _died(self) -> WorkerDied:
        if self._limits.max_resumes == 0:
            return WorkerDied("the model's process ended while it had this request", resumes=0)
        return WorkerDied(
            f"the request was lost {self._blame.num_deaths} times in a row without a new token; "
            "it may be what ends the model's process",
            poison=True,
            resumes=self.num_resumes,
        )

    def _wait(self, now: float, retry_after_s: float | None) -> list[Action]:
        """Try again later. Spread over the clients, by their refs, so that they do not come back all at once."""
        wait_s = min(self._limits.retry_s if retry_after_s is None else retry_after_s, self._limits.max_retry_s)
        self.phase = Phase.WAITING
        self._quiet_since = now
        self._retry_at = now + wait_s * (1 + 0.25 * spread(self.ref))
        return []

    def _retry(self, now: float) -> list[Action]:
        if self._live:
            self.phase = Phase.RUNNING
            return self._ask(now, force=True)
        # A first request that was refused at once has reached nobody: it keeps its number.
        return self._submit_next(now) if self._asked or self.num_resumes > 0 else self._submit(now)

    def _ask(self, now: float, force: bool = False) -> list[Action]:
        """Ask for everything from the next index on; not over and over for the same loss, unless `force`."""
        if not self._online or (not force and now < self._last_asked + self._limits.ask_again_s):
            return []
        self._last_asked = now
        self._asked = True
        return [self._send("resume", Resume(next_index=self.answer.next_index), now)]

    def _grant(self, now: float) -> list[Action]:
        if not self._expecting():
            self._quiet_since = now  # until here the worker had no credit: its silence meant nothing
        tokens = self._credit.grant()
        return [self._send("credit", Credit(tokens=tokens), now)] if tokens > 0 else []

    def _expecting(self) -> bool:
        """Whether silence means something: a worker without credit has nothing to say."""
        return not self._live or self._credit.granted > self.answer.next_index or self._cancelled_at is not None

    def _ask_at(self) -> float:
        return max(self._quiet_since, self._last_asked) + self._limits.silence_s

    def _margin_s(self) -> float:
        """The worker ends a late request itself; while none has it, the client does."""
        return 0.0 if self.phase is Phase.WAITING else self._limits.deadline_margin_s

    def _excuse_silence(self, now: float) -> None:
        """A tick that is far too late: this process was stopped or starved itself, and has not read what came meanwhile."""
        late_s = now - self.wake_at()
        if late_s > _STOOD_STILL_S:
            self._quiet_since += late_s

    def _limits_reached(self, now: float) -> list[Action] | None:
        if self._cancelled_at is not None and now >= self._cancelled_at + self._limits.cancel_s:
            return self._end_cancelled(now)
        if self.deadline is not None and now >= self.deadline + self._margin_s():
            return [*self._farewell(now), *self.give_up(Timeout("the request's deadline_s has passed"))]
        if self._online and self._expecting() and now >= self._quiet_since + self._limits.mute_s:
            text = f"the model has not answered for {self._limits.mute_s:.0f} s, although it was asked"
            return [*self._farewell(now), *self.give_up(Timeout(text))]
        return None

    def _farewell(self, now: float) -> list[Action]:
        return [self._send("cancel", Cancel(), now)] if self._online and self._sent else []

    def _end_cancelled(self, now: float) -> list[Action]:
        return self._finish(Done(finish_reason="cancelled", cancelled=True, cancel_reason="client"), now)

    def _finish(self, done: Done, now: float) -> list[Action]:
        self.phase = Phase.ENDED
        rest = self.answer.rest(done.parts)
        stats = stats_of(
            done,
            generated=self.answer.next_index,
            resumes=self.num_resumes,
            ttft_ms=1000 * ((self._first_token_at or now) - self._started_at),
            total_ms=1000 * (now - self._started_at),
        )
        prompt = self._accepted.prompt if self._accepted is not None else b""
        end = End(StreamEnd(stats=stats, prompt=prompt, generated=self.answer.ids))
        return [Deliver(rest), end] if rest else [end]

    def _send(self, kind: str, body: object, now: float) -> Send:
        self._last_sent = now
        return Send(kind, body)
