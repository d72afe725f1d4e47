"""The worker's half of a stream and the client's, both as they are, over a wire that drops any messages in either direction.

However few get through: the answer is whole, with the text that was held back until its end, or the stream ends in an error.
"""

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_host.client.actions import Action, Deliver, End, Fail
from erllama_host.client.actions import Send as ClientSend
from erllama_host.client.infer_options import infer_request
from erllama_host.client.limits import StreamLimits
from erllama_host.client.results import StreamEnd, Transcript
from erllama_host.client.stream_state import StreamEvent, StreamState
from erllama_host.errors import ErllamaError
from erllama_host.protocol.inference import Accepted, Credit, Done, Infer, Part, Resume, Tokens
from workers.commands import Generated, Hold
from workers.streams import Effect, Send, Streams

REF = "tiny/" + "0123456789abcdef" * 2
ME = b"\x01me"
LIMITS = StreamLimits(window=8, grant_at=2, mute_s=30.0)
TICK_S = 0.25
ROUNDS = 400


@dataclass
class Conversation:
    """A worker that counts, a client, a wire that drops what it is told to. The text of the last `num_held` tokens is held back."""

    total: int
    num_held: int
    drops: deque[bool]
    now: float = 0.0
    made: int = 0
    held: bool = False
    to_worker: deque[ClientSend] = field(default_factory=deque)
    to_client: deque[StreamEvent] = field(default_factory=deque)
    transcript: Transcript = field(default_factory=Transcript)
    unread: int = 0
    outcome: StreamEnd | ErllamaError | None = None

    def __post_init__(self) -> None:
        self.streams = Streams("i", max_ahead_tokens=8, lost_after_s=1e9)
        request = infer_request("a prompt", {"max_tokens": self.total})
        self.client = StreamState(REF, request.body, LIMITS)
        self.do(self.client.start(self.now, online=True))

    def run(self) -> StreamEnd | ErllamaError | None:
        for _ in range(ROUNDS):
            self.exchange()
            if self.outcome is not None:
                break
            self.now += TICK_S
            self.do(self.client.on_tick(self.now))
        return self.outcome

    def exchange(self) -> None:
        while self.to_worker:
            self.take(self.to_worker.popleft())
        self.compute()
        while self.to_client and self.outcome is None:
            self.do(self.client.on_event(self.to_client.popleft(), self.now))
        if self.outcome is None:
            count, self.unread = self.unread, 0
            self.do(self.client.on_read(count, self.now))

    def gets_through(self) -> bool:
        return not (self.drops and self.drops.popleft())

    # ---- the client's side ---------------------------------------------------------------------------------------

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.outcome is None, "nothing may follow the end"
            match action:
                case ClientSend():
                    if self.gets_through():
                        self.to_worker.append(action)
                case Deliver():
                    self.unread += self.transcript.add(action.pieces)
                case End():
                    self.outcome = action.result
                case Fail():
                    self.outcome = action.error

    # ---- the worker's side ---------------------------------------------------------------------------------------

    def take(self, message: ClientSend) -> None:
        match message.body:
            case Infer() if self.streams.find(REF) is None:
                self.streams.open(REF, ME, self.now, credit=message.body.credit, attempt=message.body.attempt)
                accepted = Accepted(incarnation="i", prompt=b"", seed=1, attempt=message.body.attempt)
                self.carry_out(self.streams.accept(REF, accepted))
            case Infer():
                self.streams.resubmitted(REF, ME, message.body.attempt)
                self.carry_out(self.streams.resume(REF, ME, 0, self.now))
            case Resume():
                self.carry_out(self.streams.resume(REF, ME, message.body.next_index, self.now))
            case Credit():
                self.carry_out(self.streams.credit(REF, ME, message.body.tokens, self.now))

    def compute(self) -> None:
        """Up to three tokens, and the end where it is due."""
        if not self.streams.is_active(REF) or self.held:
            return
        ids = tuple(range(self.made, min(self.made + 3, self.total)))
        if ids:
            shown = [index for index in ids if index < self.total - self.num_held]
            parts = (Part("text", text_of(shown)),) if shown else ()
            self.carry_out(self.streams.generated(Generated(REF, self.made, ids, parts), self.now))
            self.made += len(ids)
        if self.made == self.total:
            rest = text_of(range(self.total - self.num_held, self.total))
            parts = [Part("text", rest)] if rest else []
            done = Done(finish_reason="length", generated=self.total, parts=parts)
            self.carry_out(self.streams.ended(REF, "done", done, self.now))

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Hold):
                self.held = effect.held
            elif isinstance(effect, Send) and self.gets_through():
                self.to_client.append(effect.body)


def text_of(indices) -> str:
    return "".join(f" {index}" for index in indices)


answers = st.integers(1, 30).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, min(total, 4))))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(answer=answers, drops=st.lists(st.booleans(), max_size=60))
def test_whichever_messages_are_dropped_the_answer_is_whole(answer, drops):
    total, num_held = answer
    conversation = Conversation(total, num_held, deque(drops))
    end = conversation.run()
    assert isinstance(end, StreamEnd), end
    done = conversation.transcript.completion(end)
    assert done.generated == list(range(total))
    assert done.text == text_of(range(total))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(answer=answers, kinds=st.sets(st.sampled_from([Accepted, Tokens, Done])))
def test_what_never_comes_is_an_error_and_not_a_shorter_answer(answer, kinds):
    total, num_held = answer
    conversation = Conversation(total, num_held, deque())
    conversation.to_client = Without(kinds)
    end = conversation.run()
    if not kinds:
        assert isinstance(end, StreamEnd)
    elif Done in kinds and Accepted not in kinds:
        assert end is None, "it may still be computing: the client asks on, until its deadline if it has one"
    else:
        assert isinstance(end, ErllamaError) and end.code == "Timeout"


class Without(deque):
    """A wire on which messages of certain kinds never arrive."""

    def __init__(self, kinds: set[type]) -> None:
        super().__init__()
        self._kinds = tuple(kinds)

    def append(self, event: StreamEvent) -> None:
        if not isinstance(event, self._kinds):
            super().append(event)


def test_the_end_that_comes_without_its_tokens_is_given_up_in_bounded_time():
    conversation = Conversation(10, 2, deque())
    conversation.to_client = Without({Tokens})
    end = conversation.run()
    assert isinstance(end, ErllamaError) and "last 10 tokens" in end.message and end.retryable
    assert conversation.now < LIMITS.mute_s
