"""A stream is delivered whole, in order and once, whatever is lost, repeated, late or restarted on the way."""

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_host.client.actions import Action, Deliver, End, Fail, Send
from erllama_host.client.infer_options import infer_request
from erllama_host.client.limits import StreamLimits
from erllama_host.client.results import Completion, StreamEnd, Transcript
from erllama_host.client.stream_state import StreamState
from erllama_host.protocol.inference import Accepted, ErrorBody, Moved
from tests.support.fake_worker import FakeWorker, is_valid_answer, text_of_all

REF = "tiny/" + "0123456789abcdef" * 2
LIMITS = StreamLimits(window=8, grant_at=2, max_resumes=10_000)


@dataclass
class World:
    """A client, a wire that may lose and repeat, and a worker that may die. Time stands still unless told."""

    total: int
    limits: StreamLimits = LIMITS
    now: float = 0.0
    lives: int = 1
    up: list[Send] = field(default_factory=list)
    down: list[object] = field(default_factory=list)
    late: list[object] = field(default_factory=list)
    """What an earlier life of the worker sent and has not arrived yet."""
    unread: int = 0
    transcript: Transcript = field(default_factory=Transcript)
    ids: list[int] = field(default_factory=list)
    outcome: StreamEnd | Exception | None = None
    online: bool = True

    def __post_init__(self) -> None:
        self.worker: FakeWorker | None = FakeWorker(1, window=self.limits.window)
        request = infer_request("a prompt", {"max_tokens": self.total})
        self.prompt = bytes(b for c in b"a prompt" for b in (c, 0, 0, 0))
        self.state = StreamState(REF, request.body, self.limits)
        self.do(self.state.start(self.now, online=True))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.outcome is None, "nothing may follow the end"
            match action:
                case Send():
                    self.up.append(action)
                case Deliver():
                    self.unread += self.transcript.add(action.pieces)
                    for piece in action.pieces:
                        assert piece.seq == len(self.ids)
                        self.ids += piece.token_ids
                case End():
                    self.outcome = action.result
                case Fail():
                    self.outcome = action.error

    # What can happen; each is one step of a schedule.

    def take_up(self) -> None:
        if self.up and self.online:
            message = self.up.pop(0)
            if self.worker is None:
                loading = ErrorBody(code="ModelLoading", message="loading", details={"retry_after_s": 0.5})
                if message.kind in ("infer", "resume"):
                    self.down.append(loading)
            else:
                self.down += [body for _, _, body in self.worker.handle(REF, message.kind, message.body)]

    def take_down(self) -> None:
        if self.down and self.online:
            body = self.down.pop(0)
            if isinstance(body, Accepted) and body.incarnation == f"life-{self.lives}":
                self.late.clear()  # the controller fences earlier lives
            self.do(self.state.on_event(body, self.now))

    def take_late(self) -> None:
        if self.late and self.online:
            self.do(self.state.on_event(self.late.pop(0), self.now))

    def repeat_down(self) -> None:
        if self.down:
            self.down.insert(0, self.down[0])

    def lose_down(self) -> None:
        if self.down:
            self.down.pop(0)

    def lose_up(self) -> None:
        if self.up:
            self.up.pop(0)

    def make_one(self) -> None:
        self.make(1)

    def make_five(self) -> None:
        self.make(5)

    def make(self, count: int) -> None:
        if self.worker is not None:
            self.down += [body for _, _, body in self.worker.step(REF, count)]

    def read(self) -> None:
        count, self.unread = self.unread, 0
        self.do(self.state.on_read(count, self.now))

    def die(self) -> None:
        if self.worker is not None:
            self.worker = None
            self.late, self.down = self.late + self.down, []

    def respawn(self) -> None:
        if self.worker is None:
            while self.up and self.online:
                self.take_up()  # the controller answered at once what came while no worker served
            self.lives += 1
            self.worker = FakeWorker(self.lives, window=self.limits.window)

    def miss_client(self) -> None:
        if self.worker is not None:
            self.down += [body for _, _, body in self.worker.miss_client(REF)]

    def hint(self) -> None:
        if self.online:
            self.do(self.state.on_event(Moved(incarnation=self.worker.incarnation if self.worker else ""), self.now))

    def break_link(self) -> None:
        if self.online:
            self.online = False
            self.up.clear()
            self.down.clear()
            self.late.clear()
            self.do(self.state.on_offline(self.now))

    def mend_link(self) -> None:
        if not self.online:
            self.online = True
            self.do(self.state.on_online(self.now))

    def pass_time(self) -> None:
        self.now += 0.3
        self.do(self.state.on_tick(self.now))

    def calm_down(self, rounds: int = 400) -> None:
        """From here on nothing goes wrong any more: the stream must end."""
        self.mend_link()
        self.respawn()
        for _ in range(rounds):
            if self.outcome is not None:
                return
            while self.up:
                self.take_up()
            self.make_five()
            while self.down and self.outcome is None:
                self.take_down()
            if self.outcome is None:
                self.read()
                self.pass_time()

    def completion(self) -> Completion:
        assert isinstance(self.outcome, StreamEnd), self.outcome
        return self.transcript.completion(self.outcome)


STEPS = {
    "take_up": 30,
    "take_down": 40,
    "take_late": 8,
    "make_one": 12,
    "make_five": 6,
    "read": 10,
    "pass_time": 25,
    "repeat_down": 6,
    "lose_down": 3,
    "lose_up": 3,
    "die": 4,
    "respawn": 8,
    "hint": 5,
    "miss_client": 2,
    "break_link": 3,
    "mend_link": 8,
}
"""What may happen, and how often among all that happens."""


def run_for(world: World, steps: int, chance: random.Random, **weights: int) -> None:
    """Let things happen at random; at every moment the answer so far must be a right beginning."""
    odds = {**STEPS, **weights}
    for step in chance.choices(list(odds), list(odds.values()), k=steps):
        if world.outcome is not None:
            break
        getattr(world, step)()
    assert is_valid_answer(world.prompt, world.ids)


seeds = st.integers(0, 2**32)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(seed=seeds, total=st.integers(1, 40), steps=st.integers(0, 250))
def test_nothing_is_lost_repeated_or_made_up(seed, total, steps):
    world = World(total)
    run_for(world, steps, random.Random(seed))
    world.calm_down()
    done = world.completion()
    assert done.generated == world.ids
    assert len(world.ids) == total
    assert is_valid_answer(world.prompt, world.ids)
    assert done.text == text_of_all(world.ids)
    assert done.tokens == [*b"a prompt", *world.ids]
    assert not done.cancelled


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, total=st.integers(1, 60))
def test_what_has_come_and_is_not_read_is_bounded(seed, total):
    world = World(total)
    for _ in range(100):
        run_for(world, 1, random.Random(seed))
        seed += 1
        assert world.unread <= 2 * LIMITS.window  # a resume grants a window beyond what has come


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=seeds, before=st.integers(0, 80), after=st.integers(0, 80))
def test_a_cancelled_stream_ends_cancelled_or_complete(seed, before, after):
    world, chance = World(30), random.Random(seed)
    run_for(world, before, chance)
    if world.outcome is None:
        world.do(world.state.cancel(world.now))
    run_for(world, after, chance)
    world.calm_down()
    done = world.completion()
    assert is_valid_answer(world.prompt, done.generated)
    assert done.cancelled or len(done.generated) == 30


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=seeds, steps=st.integers(0, 120))
def test_after_a_tick_nothing_is_due_at_once(seed, steps):
    """Else the timer of the connection would spin."""
    world = World(20, limits=replace(LIMITS, max_resumes=3))
    run_for(world, steps, random.Random(seed))
    world.do(world.state.on_tick(world.now))
    assert world.state.wake_at() > world.now
