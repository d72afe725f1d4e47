"""Sequences of the backend and their book-keeping, changed together. Owned by the engine thread.

Everything that changes which cells exist passes here, so `cells` and the backend cannot drift apart unnoticed; `drift`
proves it when the engine is idle.
"""

from array import array
from collections.abc import Callable

from erllama_host.kv.keys import KeySpace
from workers.backend.base import Backend
from workers.cells import Cells, LiveSequence, Match

Rescue = Callable[[LiveSequence], None]


class Pool:
    """See the module docstring."""

    def __init__(self, backend: Backend) -> None:
        info, limits = backend.info, backend.limits
        self.backend = backend
        self.cells = Cells(
            limits.num_seqs, limits.num_cells, can_truncate=info.can_truncate, counts_cells=info.has_cells
        )
        self.num_dropped = 0
        self._rescue: Rescue = lambda live: None

    def set_rescue(self, rescue: Rescue) -> None:
        """`rescue` saves, within its own time limit, what is about to be dropped and is not stored."""
        self._rescue = rescue

    @property
    def can_share(self) -> bool:
        """Whether prefixes can be shared at all: the cells of a window that moves on cannot."""
        return self.backend.kv_shape.swa_mode != "window"

    def open(self, space: KeySpace, owner: str, now: float, spare: LiveSequence | None = None) -> LiveSequence:
        """An empty sequence for a request. Lets the least valuable idle sequence but `spare` go, saved, if no id is free."""
        if not self.cells.free_ids:
            self._let_go(next(live for live in self.cells.idle() if live is not spare))
        live = self.cells.open(space, now)
        live.owner = owner
        return live

    def take(self, match: Match, owner: str, session: str | None, now: float) -> LiveSequence | None:
        """A sequence with the matched tokens for a request; None where they cannot be shared.

        An idle sequence that is matched whole is taken over, unless it is pinned for somebody else, or a snapshot of its exact
        end is still to be saved; any other is shared, so that it stays as it is.
        """
        source, length = match.source, match.length
        whole = length == len(source.tokens)
        must_stay = source.saves_open and not self.backend.info.can_truncate
        whole = whole and source.session in (None, session)
        alone = not self.cells.free_ids and all(live is source for live in self.cells.idle())
        if source.owner is None and (whole or alone) and not must_stay:
            if not self.truncate(source, length):
                return None
            source.owner, source.last_used = owner, now
            if source.session != session:
                source.session = None
            return source
        if alone:  # there is no second id to share them with
            return None
        target = self.open(source.space, owner, now, spare=source)
        if not self.backend.share(source.seq, target.seq, length):
            self.drop(target)
            return None
        self.cells.shared(source, target, length)
        return target

    def copy(self, source: LiveSequence, now: float) -> LiveSequence | None:
        """An idle twin of an idle sequence (a fork); None where that cannot be."""
        if not self.cells.free_ids and all(live is source for live in self.cells.idle()):
            return None
        target = self.open(source.space, "", now, spare=source)
        target.owner = None
        if not source.tokens or not self.backend.share(source.seq, target.seq, len(source.tokens)):
            self.drop(target)
            return None
        self.cells.shared(source, target, len(source.tokens))
        return target

    def grew(self, live: LiveSequence, tokens: "array[int]") -> None:
        """The backend has computed or restored these tokens at the end of `live`."""
        self.cells.grew(live, tokens)

    def kept(self, live: LiveSequence, tokens: "array[int]", num_kept: int) -> None:
        """The backend has computed `tokens` at the end of `live`, of which the first `num_kept` stay: the rest were wrong guesses.

        Not the same as to grow and to truncate: what was there before has not changed, so saves of it stay good.
        """
        end = len(live.tokens) + num_kept
        cut = num_kept == len(tokens) or self.backend.truncate(live.seq, end)
        assert cut, "guesses are only made for models whose sequences can be cut"
        self.cells.grew(live, tokens[:num_kept])

    def truncate(self, live: LiveSequence, end: int) -> bool:
        """Cut to `end` tokens; False where that is impossible, and then nothing changed."""
        if end == len(live.tokens):
            return True
        if not self.backend.truncate(live.seq, end):
            return False
        self.cells.truncated(live, end)
        return True

    def resync(self, live: LiveSequence) -> None:
        """After a failed restore or an aborted decode: believe the backend about the length."""
        self.cells.truncated(live, min(self.backend.length(live.seq), len(live.tokens)))

    def drop(self, live: LiveSequence) -> None:
        """Clear a sequence and free its id."""
        self.backend.clear(live.seq)
        self.cells.closed(live)
        self.num_dropped += 1

    def rest(self, live: LiveSequence, now: float) -> None:
        """A request is through with `live`; it stays as live cache."""
        live.owner, live.last_used = None, now
        self.backend.retain(live.seq)

    def forget_all(self) -> None:
        """The context was dropped, and every sequence with it."""
        for live in list(self.cells):
            self.cells.closed(live)

    def make_room(self, num_cells: int) -> bool:
        """Let idle sequences go until so many cells are free. False if that is not enough."""
        while self.cells.free < num_cells:
            if not self.drop_one():
                return False
        return True

    def drop_one(self) -> bool:
        """Let the least valuable idle sequence go, saving it first. False if there is none."""
        idle = self.cells.idle()
        if not idle:
            return False
        self._let_go(idle[0])
        return True

    def keep_within(self, saved_bound: int, bound: int) -> None:
        """Before a step: let live cache go beyond `saved_bound` cells where the store has it, beyond `bound` in any case.

        Why: llama.cpp attends up to the highest used cell, so cells kept for later slow every stream now (16 streams beside
        1 500 kept cells: 1.5 times slower), while getting them back costs about 1 ms per 1 000 tokens.
        """
        idle = self.cells.idle()
        if not idle:
            return
        free_to_go = [live for live in idle if live.is_saved and live.session is None and not live.saves_open]
        for live in self.cells.over_bound(saved_bound, free_to_go):
            self.drop(live)
        rest = [live for live in self.cells.idle() if not live.saves_open]
        for live in self.cells.over_bound(bound, rest):
            self._let_go(live)

    def _let_go(self, live: LiveSequence) -> None:
        if not live.is_saved:
            self._rescue(live)
        self.drop(live)

    def drift(self) -> list[str]:
        """Where the backend's lengths differ from ours; empty is healthy."""
        backend = self.backend
        wrong = [
            f"sequence {live.seq}: {backend.length(live.seq)} tokens, expected {len(live.tokens)}"
            for live in self.cells
            if backend.length(live.seq) != len(live.tokens)
        ]
        return wrong + [
            f"sequence {seq}: {backend.length(seq)} tokens, expected none"
            for seq in self.cells.unused_ids
            if backend.length(seq)
        ]
