"""Whatever is lost on the way, and however slowly a client reads: it gets every token once, in order, and the end."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from erllama_host.protocol.inference import Accepted, Done, Part, unpack_tokens
from workers.commands import Generated, Hold
from workers.streams import Send, Streams

REF = "tiny/" + "1" * 32
ME = b"\x01me"
MAX_AHEAD = 8


class Conversation(RuleBasedStateMachine):
    """An engine that counts, a wire that loses messages, a client that de-duplicates by index and resumes."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.streams = Streams("i", max_ahead_tokens=MAX_AHEAD, lost_after_s=1e9)
        self.streams.open(REF, ME, 0.0, credit=4)
        self.held = False
        self.made = 0
        self.over = False
        self.received = []
        self.text = ""
        self.done = False
        self.losing = False
        self.run(self.streams.accept(REF, Accepted(incarnation="i", prompt=b"", seed=0)))

    def run(self, effects):
        for effect in effects:
            if isinstance(effect, Hold):
                assert effect.held is not self.held
                self.held = effect.held
            elif isinstance(effect, Send) and not self.losing:
                self.receive(effect)

    def receive(self, message):
        if message.kind == "tokens":
            ids, first = unpack_tokens(message.body.ids), message.body.first_index
            if first == len(self.received):
                self.received += ids
                self.text += "".join(part.text for part in message.body.parts)
            else:
                assert first > len(self.received) or first + len(ids) <= len(self.received), (
                    "an event changed its bounds"
                )
        elif message.kind == "done":
            self.done = self.done or len(self.received) == self.made

    @rule(count=st.integers(1, 5))
    def generate(self, count):
        if self.held or self.over:
            return
        ids = tuple(range(self.made, self.made + count))
        self.made += count
        self.run(self.streams.generated(Generated(REF, ids[0], ids, (Part("text", "." * count),)), self.now))

    @rule(seconds=st.sampled_from([0.001, 0.02, 1.0]))
    def wait(self, seconds):
        self.now += seconds
        self.run(self.streams.expire(self.now))
        self.run(self.streams.judge_silence(self.now))

    @rule(count=st.integers(0, 6))
    def grant(self, count):
        if not self.losing:
            self.run(self.streams.credit(REF, ME, count, self.now))

    @rule(losing=st.booleans())
    def lose(self, losing):
        self.losing = losing

    @rule()
    def resume(self):
        self.losing = False
        if not self.done:
            self.run(self.streams.resume(REF, ME, len(self.received), self.now))

    @rule()
    def end(self):
        if not self.over:
            self.over = True
            self.run(self.streams.ended(REF, "done", Done(finish_reason="stop"), self.now))

    @invariant()
    def nothing_is_lost_or_repeated(self):
        assert self.received == list(range(len(self.received)))
        assert self.text == "." * len(self.received)

    def teardown(self):
        self.losing = False
        if not self.over:
            self.over = True
            self.run(self.streams.ended(REF, "done", Done(finish_reason="stop"), self.now))
        if not self.done and self.streams.find(REF) is not None:
            while len(self.received) < self.made:
                before = len(self.received)
                self.run(self.streams.resume(REF, ME, before, self.now))
                assert len(self.received) > before
            self.run(self.streams.resume(REF, ME, len(self.received), self.now))
            assert self.done


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
