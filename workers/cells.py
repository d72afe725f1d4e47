"""Which sequence holds which tokens: the book-keeping of live KV. Pure; owned by the engine thread.

`Cells` mirrors what the backend holds and decides who may be let go; `pool.py` carries decisions out on the backend and
keeps the two equal. An idle check compares them.

Shared prefixes use their cells once, so usage cannot be the sum of lengths. Each sequence is a list of *extents*
`(run, start, end)`: positions `[start, end)` were written by the run of that number. A run begins where a sequence begins to
write after it was empty, shared or cut, so all sharers of a run have it from its start: a run occupies
`max(end) - start` cells, and their sum is exact.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from erllama_host.kv.keys import KeySpace
from erllama_host.kv.tokens import common_prefix_len


@dataclass(slots=True, eq=False)
class LiveSequence:
    """A sequence of the backend that holds tokens.

    Attributes:
        seq: its id in the backend. space: key space of the adapter set its KV was made with.
        tokens: the ids that have KV, in order.
        extents: see the module docstring. growing: whether the last extent may grow (it is our own run).
        owner: ref of the request that runs on it; None when it is live cache.
        session: the session it is pinned for. last_used: for eviction, oldest first.
        incomplete: restored cells that still lack the snapshot which makes them usable.
        saved_end: tokens `[0, saved_end)` have been handed to the store, so that dropping the cells loses nothing.
        chain_end: blocks of `[0, chain_end)` are stored; less than `saved_end` where only snapshots make a point usable.
        asked_end: block boundary up to which saving was begun. saves_open: save jobs that still need its cells.
        incarnation: changes when the cells change otherwise than by growing; a save job of an earlier one is void.
        no_save_before: after a refusal, when to offer it to the store again (monotonic).
        unsaveable: the chain of segments is broken; nothing above `saved_end` will be stored.
    """

    seq: int
    space: KeySpace
    tokens: "array[int]" = field(default_factory=lambda: array("I"))
    extents: list[tuple[int, int, int]] = field(default_factory=list)
    growing: bool = False
    owner: str | None = None
    session: str | None = None
    last_used: float = 0.0
    incomplete: bool = False
    saved_end: int = 0
    chain_end: int = 0
    asked_end: int = 0
    saves_open: int = 0
    incarnation: int = 0
    unsaveable: bool = False
    no_save_before: float = 0.0

    @property
    def is_saved(self) -> bool:
        """Whether everything it holds can be had from the store again."""
        return self.saved_end == len(self.tokens)

    def distrust(self) -> None:
        """Take nothing of it for stored: the next save offers it from its beginning, and only what is missing is packed."""
        self.saved_end = self.chain_end = self.asked_end = 0


@dataclass(frozen=True, slots=True)
class Match:
    """`source` begins with the first `length` tokens asked for."""

    source: LiveSequence
    length: int


class Cells:
    """All sequences, and the cells they use."""

    def __init__(self, num_seqs: int, num_cells: int, *, can_truncate: bool, counts_cells: bool) -> None:
        """
        Args:
            can_truncate: False where state is usable at its exact end only.
            counts_cells: False for models without attention KV: they cannot run out of cells.
        """
        self.num_cells = num_cells
        self._can_truncate = can_truncate
        self._counts_cells = counts_cells
        self._num_seqs = num_seqs
        self._free = list(range(num_seqs - 1, -1, -1))
        self._live: dict[int, LiveSequence] = {}
        self._next_run = 0
        self._used: int | None = 0

    def __iter__(self) -> Iterator[LiveSequence]:
        return iter(self._live.values())

    def __len__(self) -> int:
        return len(self._live)

    @property
    def free_ids(self) -> int:
        """Sequence ids nobody has."""
        return len(self._free)

    @property
    def unused_ids(self) -> tuple[int, ...]:
        """The ids nobody has; the backend's sequences of these are empty."""
        return tuple(self._free)

    # --- changes, each made together with the backend's ---------------------------------------------------------------

    def open(self, space: KeySpace, now: float) -> LiveSequence:
        """A new empty sequence. There must be a free id."""
        live = LiveSequence(self._free.pop(), space, last_used=now)
        self._live[live.seq] = live
        return live

    def grew(self, live: LiveSequence, tokens: "array[int]") -> None:
        """`tokens` were computed or restored at the end of `live`."""
        start = len(live.tokens)
        live.tokens.extend(tokens)
        end = len(live.tokens)
        if live.growing:
            run, first, _ = live.extents[-1]
            live.extents[-1] = (run, first, end)
        else:
            live.extents.append((self._next_run, start, end))
            live.growing = True
            self._next_run += 1
        if self._used is not None:
            self._used += end - start

    def shared(self, source: LiveSequence, target: LiveSequence, end: int) -> None:
        """The empty `target` now has the first `end` tokens of `source`."""
        assert not target.tokens and end <= len(source.tokens)
        target.tokens = source.tokens[:end]
        target.extents = _cut(source.extents, end)
        # The source may go on growing its last run: nobody else writes into it, and sharers hold a beginning of it.
        target.growing = False
        target.saved_end = min(source.saved_end, end)
        target.chain_end = target.asked_end = min(source.chain_end, end)
        self._used = None

    def truncated(self, live: LiveSequence, end: int) -> None:
        """`live` was cut to `end` tokens."""
        if end == len(live.tokens):
            return
        del live.tokens[end:]
        live.extents = _cut(live.extents, end)
        live.growing = False
        live.saved_end = min(live.saved_end, end)
        live.chain_end = min(live.chain_end, end)
        live.asked_end = min(live.asked_end, end)
        live.incarnation += 1
        live.unsaveable = False
        self._used = None

    def closed(self, live: LiveSequence) -> None:
        """`live` was cleared and its id is free again."""
        del self._live[live.seq]
        self._free.append(live.seq)
        live.incarnation += 1
        del live.tokens[:]
        live.extents.clear()
        self._used = None

    # --- questions ----------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Cells in use."""
        if self._used is None:
            self._used = self.occupied(self._live.values())
        return self._used if self._counts_cells else 0

    @property
    def free(self) -> int:
        """Cells not in use."""
        return self.num_cells - self.used

    @property
    def retained(self) -> int:
        """Cells that only live cache uses: what dropping all of it would free."""
        if not self._counts_cells:
            return 0
        return self.used - self.occupied(live for live in self._live.values() if live.owner is not None)

    @staticmethod
    def occupied(lives: Iterable[LiveSequence]) -> int:
        """Cells that these sequences use together, shared ones counted once."""
        runs: dict[int, int] = {}
        total = 0
        for live in lives:
            for run, start, end in live.extents:
                known = runs.get(run, start)
                if end > known:
                    total += end - known
                    runs[run] = end
        return total

    def idle(self) -> list[LiveSequence]:
        """Live cache, in the order in which it is let go: what can be had again first, pinned last, then by last use."""
        found = [live for live in self._live.values() if live.owner is None]
        return sorted(found, key=lambda live: (live.session is not None, not live.is_saved, live.last_used))

    def in_session(self, session: str) -> LiveSequence | None:
        """The sequence pinned for a session."""
        return next((live for live in self._live.values() if live.session == session), None)

    def best_match(self, row: bytes, space: KeySpace, most: int) -> Match | None:
        """The longest beginning of `row` that a live sequence holds and can share.

        Args:
            row: packed tokens. most: how much of it may be reused.
        Returns:
            Of equally long matches an exact one (nothing would be cut off), then one that is idle; None without any.
        """
        best: tuple[int, bool, bool] | None = None
        found: Match | None = None
        for live in self._live.values():
            if live.space != space or not live.tokens or live.incomplete:
                continue
            length = min(common_prefix_len(live.tokens.tobytes(), row), most)
            exact = length == len(live.tokens)
            if not length or not (exact or self._can_truncate):
                continue
            rank = (length, exact, live.owner is None)
            if best is None or rank > best:
                best, found = rank, Match(live, length)
        return found

    def over_bound(self, bound: int, candidates: Iterable[LiveSequence]) -> list[LiveSequence]:
        """Which of `candidates`, in that order, to drop so that live cache holds at most `bound` cells."""
        victims: list[LiveSequence] = []
        if not self._counts_cells:
            return victims
        kept = list(self._live.values())
        busy = self.occupied(live for live in kept if live.owner is not None)
        held = self.used - busy
        for live in candidates:
            if held <= bound:
                break
            kept.remove(live)
            victims.append(live)
            held = self.occupied(kept) - busy
        return victims


def _cut(extents: list[tuple[int, int, int]], end: int) -> list[tuple[int, int, int]]:
    return [(run, start, min(stop, end)) for run, start, stop in extents if start < end]
