"""One request in the engine: its phases, its row of tokens, what is known of it. Pure; owned by the engine thread.

    QUEUED ──▶ WAITING ──▶ LOOKUP ──▶ RESTORING ──▶ PREFILL ──▶ DECODE ──▶ DONE
                  ▲  │________________________________▲
                  └ for another request that is computing the same prefix

A request's *row* is its prompt followed by its answer so far. `live` holds the KV of the row's beginning. Both prefill and
decode compute the row's rest: in decode that rest is the one token sampled last. So a request whose KV was taken away
(preemption) or never was here (a resumed stream) goes on by computing its row again, whatever it had been doing.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from erllama_host.errors import ErllamaError
from erllama_host.protocol.inference import CacheReport, Part, Stats, TokenLogprobs
from workers.adapters import AdapterSet
from workers.backend.base import Sampler
from workers.cells import LiveSequence
from workers.commands import Submit
from workers.text import AnswerText


class Phase(Enum):
    """Where a request is."""

    QUEUED = "queued"
    WAITING = "waiting"
    LOOKUP = "lookup"
    RESTORING = "restoring"
    PREFILL = "prefill"
    DECODE = "decode"
    DONE = "done"


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.QUEUED: frozenset({Phase.WAITING, Phase.LOOKUP, Phase.PREFILL, Phase.DONE}),
    Phase.WAITING: frozenset({Phase.LOOKUP, Phase.PREFILL, Phase.QUEUED, Phase.DONE}),
    Phase.LOOKUP: frozenset({Phase.RESTORING, Phase.PREFILL, Phase.QUEUED, Phase.DONE}),
    Phase.RESTORING: frozenset({Phase.PREFILL, Phase.DECODE, Phase.QUEUED, Phase.DONE}),
    Phase.PREFILL: frozenset({Phase.DECODE, Phase.QUEUED, Phase.DONE}),
    Phase.DECODE: frozenset({Phase.QUEUED, Phase.DONE}),
    Phase.DONE: frozenset(),
}
"""QUEUED again is a preemption."""


@dataclass(slots=True)
class Times:
    """Moments (monotonic) and durations of one request."""

    admitted_at: float | None = None
    first_token_at: float | None = None
    decode_from: float | None = None
    lookup_ms: float = 0.0
    restore_ms: float = 0.0
    prefill_s: float = 0.0


@dataclass(slots=True)
class CacheTally:
    """What the cache did for a request, as it goes; becomes its `CacheReport`."""

    live_tokens: int = 0
    tier_tokens: dict[str, int] = field(default_factory=dict)
    created_tokens: int = 0
    miss_reason: str | None = None
    diverged_at: int | None = None


@dataclass(slots=True)
class Outbox:
    """Tokens of the answer that were not reported yet."""

    first_index: int = 0
    ids: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last_sent_at: float | None = None


class Request:
    """See the module docstring.

    Attributes:
        row: prompt and answer. generated: the answer alone, with what an earlier worker delivered.
        draft_from: for `verify`: logits are wanted from this position of the row on; None for inference.
        choices: for `verify`: the likeliest token after each of these positions. failure: why it ended without all of them.
        cache: what the cache did when the request was first admitted, which is what its report tells. tally: what it does for
            the present admission: the same, unless the request was preempted.
        cuts: positions where the prefill must stop once, for state that can only be taken or shared at its very end.
        snapshot_at: block ends at which a snapshot is stored. pinned: the prefix to pin was handed to the store.
    """

    def __init__(self, submit: Submit, *, draft_from: int | None = None) -> None:
        self.submit = submit
        self.ref = submit.ref
        self.row = array("I", submit.prompt)
        self.row.extend(submit.delivered)
        self.generated: list[int] = list(submit.delivered)
        self.draft_from = draft_from
        self.phase = Phase.QUEUED
        self.held = False
        self.preempted = False
        self.uses: AdapterSet | None = None
        self.live: LiveSequence | None = None
        self.waits_for: Request | None = None
        self.waits_until_len = 0
        self.cuts: list[int] = []
        self.snapshot_at: set[int] = set()
        self.pinned = False
        self.sampler: Sampler | None = None
        self.text: AnswerText | None = None
        self.times = Times()
        self.cache = CacheTally()
        self.tally = self.cache
        self.outbox = Outbox(first_index=len(submit.delivered))
        self.prefilled_tokens = 0
        self.draft_tokens = 0
        self.draft_accepted = 0
        self.draft_pause = 0
        self.choices: list[int] = []
        self.failure: ErllamaError | None = None

    def enter(self, phase: Phase) -> None:
        """Go on to `phase`; only as TRANSITIONS has it."""
        assert phase in TRANSITIONS[self.phase], f"{self.ref}: {self.phase.value} -> {phase.value}"
        self.phase = phase

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.submit.prompt)

    @property
    def num_kv(self) -> int:
        """Tokens of the row that have KV."""
        return len(self.live.tokens) if self.live is not None else 0

    @property
    def rows_left(self) -> int:
        """Rows until the next token can be sampled, or until the next cut."""
        end = len(self.row)
        have = self.num_kv
        for cut in self.cuts:
            if have < cut < end:
                end = cut
        return end - have

    @property
    def most_reusable(self) -> int:
        """How much of the row may come from a cache. A verification needs logits, so rows, from `draft_from` on."""
        return len(self.row) if self.draft_from is None else self.draft_from

    def logits_wanted(self, num_rows: int) -> int:
        """How many of the next `num_rows` rows, counted from the last, need logits."""
        end = self.num_kv + num_rows
        first = len(self.row) - 1 if self.draft_from is None else self.draft_from
        return max(0, end - max(first, self.num_kv))

    def packed(self) -> bytes:
        """The row as little-endian u32."""
        return packed_row(self.row)


def packed_row(row: "array[int]", start: int = 0, end: int | None = None) -> bytes:
    """Tokens `[start, end)` of a row as little-endian u32."""
    part = row if start == 0 and end is None else row[start:end]
    if ARRAY_IS_LITTLE:
        return part.tobytes()
    swapped = part[:]
    swapped.byteswap()
    return swapped.tobytes()


ARRAY_IS_LITTLE = array("I", [1]).tobytes()[0] == 1


def cache_report(request: Request) -> CacheReport:
    """What the cache did for `request`. `exact`: the whole prompt came from stored segments, but for at most one token."""
    tally = request.cache
    stored = sum(tally.tier_tokens.values())
    read = tally.live_tokens + stored
    if not read:
        kind = "cold"
    elif not stored:
        kind = "live"
    else:
        kind = "exact" if read >= request.num_prompt - 1 else "partial"
    complete = read >= request.num_prompt - 1
    # Where a row parted that matched for less than was read is of no interest.
    diverged = not complete and tally.diverged_at is not None and tally.diverged_at >= read
    return CacheReport(
        kind=kind,
        read_tokens=read,
        live_tokens=tally.live_tokens,
        tier_tokens=dict(tally.tier_tokens),
        created_tokens=tally.created_tokens,
        miss_reason=None if complete else tally.miss_reason,
        diverged_at=tally.diverged_at if diverged else None,
        lookup_ms=request.times.lookup_ms,
        restore_ms=request.times.restore_ms,
    )


def stats(request: Request, now: float) -> Stats:
    """Times and counts of `request`, which ends now."""
    times, arrived = request.times, request.submit.arrived_at
    fresh = len(request.generated) - len(request.submit.delivered)
    decode_s = now - times.decode_from if times.decode_from is not None else 0.0
    first = times.first_token_at
    return Stats(
        prompt_tokens=request.num_prompt,
        generated_tokens=len(request.generated),
        prefilled_tokens=request.prefilled_tokens,
        queue_ms=((times.admitted_at if times.admitted_at is not None else now) - arrived) * 1e3,
        lookup_ms=times.lookup_ms,
        restore_ms=times.restore_ms,
        prefill_ms=times.prefill_s * 1e3,
        decode_ms=decode_s * 1e3,
        ttft_ms=(first - arrived) * 1e3 if first is not None else 0.0,
        total_ms=(now - arrived) * 1e3,
        tokens_per_s=(fresh - 1) / decode_s if fresh > 1 and decode_s > 0 else 0.0,
        draft_tokens=request.draft_tokens,
        draft_accepted=request.draft_accepted,
    )


def has_penalties(request: Request) -> bool:
    """Whether the sampler looks back at tokens that were not sampled here."""
    params = request.submit.params
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def penalty_window(request: Request) -> Sequence[int]:
    """The prompt tokens that penalties look back at."""
    last_n = request.submit.params.penalty_last_n
    prompt = request.submit.prompt
    return prompt if last_n < 0 else prompt[max(0, len(prompt) - last_n) :]
