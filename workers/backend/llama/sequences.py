"""Sequences of one context: sharing, cutting, retaining. Owned by `LlamaBackend`, used by the engine thread alone.

Native sequence ids, in order:

    [0, num_seqs)                visible to the caller
    [num_seqs, 2 num_seqs)       second owners of retained sequences, for a sliding window only
    scratch, void                one each: pieces pass through `scratch`; `void` is empty for ever

llama.cpp's window cache takes any out-of-window cell that has one owner, even while free cells exist; a second owner
keeps the cell. `void` serves to strip recurrent state: copying an empty sequence onto another leaves that one's
attention cells and drops its recurrent state, which no removal does.
"""

from dataclasses import dataclass
from typing import Any

from workers.backend.llama.library import last_position, lib
from workers.backend.values import ModelFacts

_TO_THE_END = -1


@dataclass(frozen=True, slots=True)
class SeqPlan:
    """Which native ids serve what."""

    num_seqs: int
    has_second_owners: bool

    @property
    def scratch(self) -> int:
        return self.num_seqs * (2 if self.has_second_owners else 1)

    @property
    def void(self) -> int:
        return self.scratch + 1

    @property
    def num_native(self) -> int:
        return self.void + 1

    def second_owner(self, seq: int) -> int:
        return self.num_seqs + seq


class Sequences:
    """The sequences in one context's memory."""

    def __init__(self, context: Any, memory: Any, plan: SeqPlan, facts: ModelFacts, *, swa_full: bool) -> None:
        self._context = context
        self._memory = memory
        self._facts = facts
        self._swa_full = swa_full
        self.plan = plan
        self._retained: set[int] = set()
        self._incomplete: dict[int, int] = {}
        self._range_bytes = (0, 0)

    def length(self, seq: int) -> int:
        """Tokens of a visible sequence, by llama.cpp's count (which knows nothing of cells that lack their snapshot)."""
        if seq in self._incomplete:
            return self._incomplete[seq]
        return int(last_position(self._memory, seq)) + 1

    def is_usable(self, seq: int) -> bool:
        """False between restored cells and the snapshot that completes them."""
        return seq not in self._incomplete

    def set_incomplete(self, seq: int, length: int) -> None:
        """Cells `[0, length)` are there, the recurrent state is not."""
        self._incomplete[seq] = length

    def set_complete(self, seq: int) -> None:
        self._incomplete.pop(seq, None)

    # --- for callers -------------------------------------------------------------------------------------------------

    def share(self, src: int, dst: int, end: int) -> bool:
        """See `Backend.share`; positions are checked before and after, because a wrong share is silent."""
        if not self.is_usable(src) or not self._can_share(src, end):
            return False
        self.copy(src, dst, 0, end)
        if self.ends_at(dst, end):
            return True
        self.clear(dst)
        return False

    def _can_share(self, src: int, end: int) -> bool:
        if not self._facts.can_truncate:
            return end == self.length(src)
        # Without a full window cache, shared window cells are never reclaimed and every sharer soon runs out of them.
        return not self._facts.n_swa or (self._swa_full and self.has_window(src, end))

    def truncate(self, seq: int, end: int) -> bool:
        """See `Backend.truncate`."""
        if end == self.length(seq) and self.is_usable(seq):
            return True
        if end == 0:
            self.clear(seq)
            return True
        if not self._facts.can_truncate or (self._facts.n_swa and not self.has_window(seq, end)):
            return False
        self.cut(seq, end)
        return True

    def clear(self, seq: int) -> None:
        self.release(seq)
        self.remove(seq)
        self.set_complete(seq)

    def retain(self, seq: int) -> None:
        """Give the cells a second owner, where a window cache would take them from a single one."""
        if self.plan.has_second_owners and seq not in self._retained and self.length(seq):
            self.copy(seq, self.plan.second_owner(seq), 0, self.length(seq))
            self._retained.add(seq)

    def release(self, seq: int) -> None:
        """Undo `retain`; before a sequence goes on, or its own window could never move."""
        if seq in self._retained:
            self.remove(self.plan.second_owner(seq))
            self._retained.discard(seq)

    def cut(self, seq: int, end: int) -> None:
        """Remove `[end, length)` where that is known to be possible."""
        self.release(seq)
        removed = lib.llama_memory_seq_rm(self._memory, seq, end, _TO_THE_END)
        assert removed, f"sequence {seq} cannot be cut at {end}"

    # --- native ------------------------------------------------------------------------------------------------------

    def copy(self, src: int, dst: int, start: int, end: int) -> None:
        lib.llama_memory_seq_cp(self._memory, src, dst, start, end)

    def remove(self, native_seq: int) -> None:
        lib.llama_memory_seq_rm(self._memory, native_seq, -1, -1)

    def strip_recurrent(self, native_seq: int) -> None:
        """Leave only the attention cells."""
        self.copy(self.plan.void, native_seq, -1, -1)

    def ends_at(self, seq: int, end: int) -> bool:
        """Whether `seq` is the tokens `[0, end)` as far as llama.cpp's positions can tell."""
        first = int(lib.llama_memory_seq_pos_min(self._memory, seq))
        last = int(lib.llama_memory_seq_pos_max(self._memory, seq))
        if last != end - 1:
            return False
        if self._facts.has_recurrent:
            return self._facts.has_cells or first == last
        return first <= (max(0, end - self._facts.n_swa + 1) if self._facts.n_swa else 0)

    # --- the window's completeness -----------------------------------------------------------------------------------

    def has_window(self, seq: int, end: int) -> bool:
        """Whether every cell is there that the token at position `end` will look at.

        `pos_min` does not see holes, but the size of a stored range does: a complete range of n tokens is exactly
        `a + b * n` bytes.
        """
        start = max(0, end - self._facts.n_swa + 1)
        if start == end:
            return True
        fixed, per_token = self._range_bytes
        return self.stored_bytes(seq, start, end) == fixed + per_token * (end - start)

    def calibrate(self, seq: int) -> None:
        """Learn a and b of `has_window` from `seq`, which has two tokens, complete ones."""
        one, two = self.stored_bytes(seq, 0, 1), self.stored_bytes(seq, 0, 2)
        self._range_bytes = (2 * one - two, two - one)

    def stored_bytes(self, seq: int, start: int, end: int) -> int:
        """Bytes that llama.cpp would write for a range of `seq`."""
        self.copy(seq, self.plan.scratch, start, end)
        size = int(lib.llama_state_seq_get_size(self._context, self.plan.scratch))
        self.remove(self.plan.scratch)
        return size
