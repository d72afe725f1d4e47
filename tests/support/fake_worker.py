"""A worker's side of inference streams without a model: deterministic tokens, text held back, replay, credit, incarnations.

What it must produce is known beforehand (`expected_ids`), or can be judged (`is_valid_answer`), whatever happens on the way.
"""

import zlib
from dataclasses import dataclass, field

from erllama_host.protocol.inference import (
    INITIAL_CREDIT_TOKENS,
    Accepted,
    Cancel,
    Credit,
    Done,
    Infer,
    Lost,
    Part,
    Resume,
    Tokens,
    pack_tokens,
    unpack_tokens,
)

Event = tuple[str, str, object]
"""(ref, kind, body)"""


def prompt_ids(body: Infer) -> bytes:
    if body.tokens is not None:
        return body.tokens
    return pack_tokens(list((body.text or "chat").encode()))


def token_at(so_far: bytes, life: int) -> int:
    """The token after `so_far` (prompt and answer, packed). Each life of a worker has a choice of its own, as sampling has."""
    return zlib.crc32(so_far) % 6_000 * 8 + life % 8


def is_valid_answer(prompt: bytes, ids: list[int]) -> bool:
    """Whether every token is one that some life would have chosen after exactly those before it."""
    return all(ids[i] // 8 == token_at(prompt + pack_tokens(ids[:i]), 0) // 8 for i in range(len(ids)))


def expected_ids(prompt: bytes, count: int, life: int = 1) -> list[int]:
    ids: list[int] = []
    for _ in range(count):
        ids.append(token_at(prompt + pack_tokens(ids), life))
    return ids


def text_of(token: int) -> str:
    return f" {token}"


def text_of_all(ids: list[int]) -> str:
    return "".join(map(text_of, ids))


def is_held_back(token: int) -> bool:
    """Text of these tokens comes with the next one, or at the end, as UTF-8 halves and beginnings of stop strings do."""
    return token % 3 == 0


@dataclass
class Run:
    body: Infer
    prompt: bytes
    total: int
    allowance: int
    ids: list[int] = field(default_factory=list)
    held: str = ""
    log: list[tuple[str, object]] = field(default_factory=list)
    finished: bool = False
    given_up: bool = False

    @property
    def position(self) -> int:
        return len(self.ids)


class FakeWorker:
    """One incarnation. `handle` takes a client's message, `step` makes tokens; both return events for the client."""

    def __init__(self, life: int = 1, default_total: int = 20, window: int = INITIAL_CREDIT_TOKENS) -> None:
        self.window = window
        self.life = life
        self.incarnation = f"life-{life}"
        self.default_total = default_total
        self.runs: dict[str, Run] = {}

    def handle(self, ref: str, kind: str, body: object) -> list[Event]:
        match body:
            case Infer():
                return self._infer(ref, body)
            case Resume():
                return self._replay(ref, body.next_index)
            case Credit() if ref in self.runs:
                self.runs[ref].allowance += body.tokens
            case Cancel() if ref in self.runs and not self.runs[ref].finished:
                return self._finish(ref, self.runs[ref], cancel_reason=body.reason)
        return []

    def step(self, ref: str, count: int = 1) -> list[Event]:
        """Make up to `count` tokens, as one event; the end of the stream where it is due."""
        run = self.runs.get(ref)
        if run is None or run.finished:
            return []
        end = min(run.position + count, run.total, run.allowance)
        events = [self._tokens(ref, run, end)] if end > run.position else []
        return events + (self._finish(ref, run) if run.position == run.total else [])

    def miss_client(self, ref: str) -> list[Event]:
        """No sign of life for too long: the request is cancelled."""
        run = self.runs.get(ref)
        if run is None or run.finished:
            return []
        run.given_up = True
        return self._finish(ref, run, cancel_reason="lost_client")

    def _infer(self, ref: str, body: Infer) -> list[Event]:
        delivered = unpack_tokens(body.resume.delivered) if body.resume else []
        known = self.runs.get(ref)
        if known is not None and not (known.given_up and body.attempt > known.body.attempt):
            known.body = body if body.attempt > known.body.attempt else known.body
            return self._replay(ref, len(delivered))
        total = self.default_total if body.max_tokens is None else body.max_tokens
        run = self.runs[ref] = Run(body, prompt_ids(body), total, len(delivered) + body.credit, ids=delivered)
        run.held = _held(delivered)
        return [(ref, "accepted", self._accepted(run))]

    def _accepted(self, run: Run) -> Accepted:
        return Accepted(incarnation=self.incarnation, prompt=run.prompt, seed=7, attempt=run.body.attempt)

    def _replay(self, ref: str, next_index: int) -> list[Event]:
        run = self.runs.get(ref)
        if run is None:
            return [(ref, "lost", Lost(incarnation=self.incarnation))]
        run.allowance = max(run.allowance, next_index + self.window)
        again = [(ref, kind, b) for kind, b in run.log if not isinstance(b, Tokens) or b.first_index >= next_index]
        return [(ref, "accepted", self._accepted(run)), *again]

    def _tokens(self, ref: str, run: Run, end: int) -> Event:
        start, before = run.position, run.held
        while run.position < end:
            run.ids.append(token_at(run.prompt + pack_tokens(run.ids), self.life))
        ids = run.ids[start:]
        run.held = _held(run.ids)
        text = (before + text_of_all(ids)).removesuffix(run.held)
        body = Tokens(first_index=start, ids=pack_tokens(ids), parts=[Part("text", text)] if text else [])
        run.log.append(("tokens", body))
        return (ref, "tokens", body)

    def _finish(self, ref: str, run: Run, cancel_reason: str | None = None) -> list[Event]:
        run.finished = True
        cancelled = cancel_reason is not None
        done = Done(
            finish_reason="cancelled" if cancelled else "length",
            finish_key=b"k" * 32,
            finish_len=len(run.prompt) // 4 + run.position,
            generated=run.position,
            parts=[Part("text", run.held)] if run.held else [],
            cancelled=cancelled,
            cancel_reason=cancel_reason,
        )
        run.log.append(("done", done))
        return [(ref, "done", done)]


def _held(ids: list[int]) -> str:
    """The trailing text that is held back after `ids`."""
    held: list[str] = []
    for token in reversed(ids):
        if not is_held_back(token):
            break
        held.insert(0, text_of(token))
    return "".join(held)
