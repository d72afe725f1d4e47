"""Decides what one tick computes: which request gets how many rows of the next decode. Pure.

A decode of llama.cpp takes any mixture of rows. What is decided here, and why:

- Every decoding request gets its row in every tick, so running streams keep their pace.
- Prefill rows fill up the rest: all of `max_rows` when nobody streams; else as many as the measured rates fit into
  `STEP_TARGET_S`, in whole tiles of `TILE_ROWS`, the streams' rows included.
- One prefill is finished before the next is begun, and where a step with it is long enough already, the next waits for
  the next step: of n prompts arriving together, computing all of them together would give every one of them the time
  to first token of the last. A remainder of up to `LAST_ROWS` is never left to a step of its own.
- Where that leaves room and nobody streams, a step waits for a moment for prompts that are just being looked up: without
  it the first of a burst would be computed alone, and the others behind it.
- The queue is ordered by priority, then arrival, and waiting raises priority, so nothing starves.
- Requests of different adapter sets cannot share a decode; the sets take turns.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

STEP_TARGET_S = 0.15
"""Aim for a step with prefill rows beside streams: the gap a reader notices, against the prefill's throughput."""
TILE_ROWS = 64
"""From 64 rows on llama.cpp computes CPU attention in tiles of 64 rows, and a tile costs nearly the same however few rows are in
it. At depth 4 096, 63 rows took 1 010 ms and 64 rows 606 ms; at depth 1 024, 64 rows took 290 ms and 65 rows 323 ms."""
MIN_PREFILL_ROWS = 32
"""Beside so many streams that a tile would leave a prefill fewer rows than this, a step has one more tile."""
LAST_ROWS = 8
"""A prefill that has so few rows left beyond its share is finished at once: they add a tenth to a step, and alone cost a whole."""
ENOUGH_STEP_S = 0.1
"""A step of so much prefill is not made longer for the sake of another prompt: it would only hold back the first."""
AGING_S = 2.0
"""Waiting this long is worth one step of priority."""
GATHER_S, GATHER_SHARE = 0.005, 32
"""A step is put off for so long at most, and at most for this part of what it should take."""
LOOKUP_S = 0.001
"""A lookup takes one to two milliseconds; waiting for less is in vain."""
TURN_TICKS = 8
"""Ticks one adapter set may have in a row while another waits; a switch costs 2.5 ms."""
_SMOOTHING = 0.2

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running request as the planner sees it.

    Attributes:
        rows_left: rows it could use now: 1 (plus drafts) when decoding, the rest of its prompt when prefilling.
        outputs_last: how many of these, counted from the end, need logits.
        is_prefill: whether its rows count against the prefill budget.
    """

    rows_left: int
    outputs_last: int
    is_prefill: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What one decode can take: rows, rows with logits, and prefill rows among the rows.

    A prefill may have up to `LAST_ROWS` more where that finishes it. With `enough_rows` prefill rows, no further prefill is begun.
    """

    max_rows: int
    max_outputs: int
    prefill_rows: int
    enough_rows: int


@dataclass(frozen=True, slots=True)
class Share:
    """`num_rows` rows for candidate number `index`, the last `num_outputs` of them with logits."""

    index: int
    num_rows: int
    num_outputs: int


def plan_rows(candidates: Sequence[Candidate], limits: Limits) -> list[Share]:
    """Share out the rows of one decode.

    Decoding candidates come first, in the order given; prefills follow, each getting all it can use before the next
    gets any. A decoding candidate is served whole or, when there is no room for its drafts, with its first row.
    """
    shares: list[Share] = []
    rows, outputs = limits.max_rows, limits.max_outputs
    for index, one in enumerate(candidates):
        if one.is_prefill or not rows or not outputs:
            continue
        num_rows = one.rows_left if one.rows_left <= min(rows, outputs) else 1
        shares.append(Share(index, num_rows, num_rows))
        rows -= num_rows
        outputs -= num_rows
    budget = min(rows, limits.prefill_rows)
    begun = 0
    for index, one in enumerate(candidates):
        if not one.is_prefill or begun >= min(budget, limits.enough_rows):
            continue
        silent = one.rows_left - one.outputs_last
        room = budget - begun
        if one.rows_left > min(room + LAST_ROWS, rows - begun, silent + outputs):
            num_rows = min(room, silent + outputs)
        else:
            num_rows = one.rows_left
        if num_rows <= 0:
            continue
        num_outputs = max(0, num_rows - silent)
        shares.append(Share(index, num_rows, num_outputs))
        begun += num_rows
        outputs -= num_outputs
    return shares


def prefill_rows(max_rows: int, num_beside: int, rates: "Rates") -> int:
    """How many prefill rows a step may have beside `num_beside` rows of streams."""
    if not num_beside:
        return max_rows
    fitting = (STEP_TARGET_S - rates.decode_step_s) / rates.prefill_row_s if rates.prefill_row_s > 0 else 0.0
    fewest = -(-(num_beside + MIN_PREFILL_ROWS) // TILE_ROWS)
    tiles = max(fewest, round((num_beside + fitting) / TILE_ROWS))
    return min(max_rows, tiles * TILE_ROWS - num_beside)


def enough_rows(max_rows: int, rates: "Rates") -> int:
    """How many prefill rows make a step worth while by themselves; all of them as long as nothing was measured."""
    if rates.prefill_row_s <= 0:
        return max_rows
    return max(TILE_ROWS, int(ENOUGH_STEP_S / rates.prefill_row_s))


def gathering_s(num_prefill: int, rates: "Rates") -> float:
    """How long a step of so many prefill rows alone may be put off for prompts that could share it."""
    most = min(GATHER_S, rates.step_estimate_s(num_prefill) / GATHER_SHARE)
    return most if most >= LOOKUP_S else 0.0


class Rates:
    """Measured speed of this model, smoothed.

    Attributes:
        decode_step_s: seconds of a step without prefill rows. prefill_row_s: seconds a prefill row adds.
        tokens_per_s: generated tokens a second while something is generated.
        embedding_token_s: seconds of a token of a text to embed.
    """

    def __init__(self) -> None:
        self.decode_step_s = 0.0
        self.prefill_row_s = 0.0
        self.tokens_per_s = 0.0
        self.embedding_token_s = 0.0

    def note(self, num_prefill: int, num_decode: int, seconds: float) -> None:
        """A decode of so many rows took `seconds`."""
        if not num_prefill:
            self.decode_step_s = _smooth(self.decode_step_s, seconds)
        else:
            rest = seconds - (self.decode_step_s if num_decode else 0.0)
            self.prefill_row_s = _smooth(self.prefill_row_s, max(rest, 1e-7) / num_prefill)
        if num_decode and seconds > 0:
            self.tokens_per_s = _smooth(self.tokens_per_s, num_decode / seconds)

    def note_embedding(self, num_tokens: int, seconds: float) -> None:
        """So many tokens of texts took `seconds`."""
        self.embedding_token_s = _smooth(self.embedding_token_s, seconds / num_tokens)

    def step_estimate_s(self, num_prefill: int) -> float:
        """What a step with so many prefill rows should take."""
        return self.decode_step_s + num_prefill * self.prefill_row_s


def _smooth(old: float, new: float) -> float:
    return new if old <= 0 else old + _SMOOTHING * (new - old)


def urgency(priority: int, arrived_at: float, now: float) -> tuple[float, float]:
    """Sort key of the queue, most urgent first: priority grown by waiting, then arrival."""
    return -(priority + (now - arrived_at) // AGING_S), arrived_at


class Rotation(Generic[Key]):
    """Whose turn it is among groups that cannot share a decode: up to `turn_ticks` ticks each, then who waits longest."""

    def __init__(self, turn_ticks: int = TURN_TICKS) -> None:
        self._turn_ticks = turn_ticks
        self._current: Key | None = None
        self._left = 0
        self._waiting_since: dict[Key, int] = {}
        self._tick = 0

    def pick(self, groups: Iterable[Key]) -> Key:
        """The group of this tick; `groups` are those with work, at least one, in a stable order."""
        wanted = dict.fromkeys(groups)
        self._tick += 1
        self._waiting_since = {group: self._waiting_since.get(group, self._tick) for group in wanted}
        if self._current not in wanted or (self._left <= 0 and len(wanted) > 1):
            others = [group for group in wanted if group != self._current]
            self._current = min(others, key=self._waiting_since.__getitem__)
            self._left = self._turn_ticks
        assert self._current is not None
        self._left -= 1
        del self._waiting_since[self._current]
        return self._current
