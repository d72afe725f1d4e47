"""What goes first when a tier is full. Pure.

The value of a copy is what losing it costs per byte that it frees:

    value = decayed hits × tokens to compute again × (1 + end / ATTENTION_SCALE) / bytes

Hits decay with a half-life. Since all of them decay alike, their order never changes between events, so a hit at time t
is stored as 2^(t / half-life) and nothing needs updating as time passes; logarithms keep the numbers small (`heat`).

Classes come before values, cheapest loss first: 0 what nobody should miss (logits, superseded tails, orphans), 1 copies
that another tier has too, 2 the rest. What a dead worker had leased goes only if nothing else is left.

Only what nothing depends on may go (a block is kept for the segments after it, unless another tier keeps it), and nothing
pinned, leased or being carried to another tier. A heap per tier holds the candidates. Ranks only rise unnoticed (a hit), so a
record that is too low is found out when it is popped; whatever makes a rank fall or a copy evictable calls `consider`. Records
that are out of date leave the heap when they come to its top, or when they are most of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import log2

from cache_daemon.entries import Entry, Identity
from erllama_host.kv.segment import SegmentKind, SegmentMeta

HALF_LIFE_S = 1800.0
"""Half an hour: a conversation left for lunch loses to one in use, but not to a single prompt of this minute."""

ATTENTION_SCALE = 8192
"""Position at which attention doubles the cost of a token; prefill on the measured CPU slowed by 60 % at 2 048."""

CLASS_WORTHLESS, CLASS_COPIED, CLASS_SOLE = 0, 1, 2

MAX_STALE_RECORDS = 1024
"""Beyond as many as there are candidates."""

Rank = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the catalog says of one copy: whether it may go, and how much it would be missed."""

    may_go: bool
    held: bool
    rank: Rank


def heat_of_hit(now: float) -> float:
    """The heat of one hit at `now` (seconds on any clock that is used for all)."""
    return now / HALF_LIFE_S


def add_heat(heat: float, more: float) -> float:
    """log2(2^heat + 2^more), without leaving the range of floats."""
    high, low = max(heat, more), min(heat, more)
    return high + log2(1.0 + 2.0 ** max(low - high, -60.0))


def recompute_cost(meta: SegmentMeta) -> float:
    """What computing a segment again costs, in tokens at position 0."""
    num_tokens = meta.end - min(meta.start, meta.covers_from)
    return max(1, num_tokens) * (1 + meta.end / ATTENTION_SCALE)


def rank_of(entry: Entry, num_copies: int, is_orphan: bool) -> Rank:
    """How much a copy of `entry` would be missed; lower goes first."""
    if entry.meta.kind is SegmentKind.LOGITS or entry.superseded or is_orphan:
        group = CLASS_WORTHLESS
    else:
        group = CLASS_COPIED if num_copies > 1 else CLASS_SOLE
    return group, entry.heat + log2(recompute_cost(entry.meta) / max(1, entry.payload_bytes))


class Evictor:
    """Picks victims in one tier."""

    def __init__(self, standing: Callable[[Identity], Standing | None]) -> None:
        """
        Args:
            standing: of a segment's copy in this tier, now; None when it has none (any more).
        """
        self._standing = standing
        self._heap: list[tuple[Rank, int, Identity]] = []
        self._current: dict[Identity, tuple[int, Rank]] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def consider(self, identity: Identity) -> None:
        """A copy was added, or may have become evictable or less valuable."""
        standing = self._standing(identity)
        if standing is None or not standing.may_go:
            return
        known = self._current.get(identity)
        if known is None or standing.rank < known[1]:  # else its record is a lower bound, which popping corrects
            self._push(identity, standing.rank)

    def returned(self, identity: Identity) -> None:
        """A copy may have become evictable, and its rank has not fallen. The common event: the end of a lease."""
        if identity not in self._current:
            self.consider(identity)

    def forget(self, identity: Identity) -> None:
        """The copy is gone."""
        self._current.pop(identity, None)

    def next_victim(self) -> Identity | None:
        """The copy to drop next, or None when nothing may go. It is not offered again until it is considered again."""
        held: list[tuple[Identity, Rank]] = []
        victim = None
        while victim is None:
            popped = self._pop()
            if popped is None:
                break
            identity, standing = popped
            if standing.held:
                held.append((identity, standing.rank))
            else:
                victim = identity
        if victim is None and held:
            victim = held.pop(0)[0]
        for identity, rank in held:
            self._push(identity, rank)
        return victim

    def _pop(self) -> tuple[Identity, Standing] | None:
        """The candidate of lowest rank with an up-to-date record."""
        while self._heap:
            rank, sequence, identity = heappop(self._heap)
            if not self._is_current(rank, sequence, identity):
                continue
            del self._current[identity]
            standing = self._standing(identity)
            if standing is None or not standing.may_go:
                continue
            if standing.rank > rank:
                self._push(identity, standing.rank)
                continue
            return identity, standing
        return None

    def _push(self, identity: Identity, rank: Rank) -> None:
        self._sequence += 1
        self._current[identity] = self._sequence, rank
        heappush(self._heap, (rank, self._sequence, identity))
        if len(self._heap) > 2 * len(self._current) + MAX_STALE_RECORDS:
            self._heap = [record for record in self._heap if self._is_current(*record)]
            heapify(self._heap)

    def _is_current(self, _rank: Rank, sequence: int, identity: Identity) -> bool:
        return self._current.get(identity, (0,))[0] == sequence
