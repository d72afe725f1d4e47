"""Packing and restoring pieces of sequences, straight from and to memory given by address.

Every piece passes through the scratch sequence: sharing a range with it costs no copy, llama.cpp then writes just
that range, and a restore, which first clears its target, clears nothing of value. One instance per context; engine
thread only.
"""

import ctypes
from typing import Any

from workers.backend.llama.blob import layouts_of, read_blob
from workers.backend.llama.library import lib
from workers.backend.llama.sequences import Sequences
from workers.backend.values import ModelFacts, PieceKind


class Pieces:
    """Stored state of one context's sequences."""

    def __init__(self, context: Any, sequences: Sequences, facts: ModelFacts) -> None:
        self._context = context
        self._sequences = sequences
        self._facts = facts
        self._layouts = layouts_of(facts)
        self._scratch = sequences.plan.scratch

    def size(self, seq: int, start: int, end: int, kind: PieceKind) -> int:
        """See `Backend.piece_size`."""
        if not self._to_scratch(seq, start, end, kind):
            return 0
        size = int(lib.llama_state_seq_get_size(self._context, self._scratch))
        self._sequences.remove(self._scratch)
        return size

    def pack(self, seq: int, start: int, end: int, kind: PieceKind, address: int, capacity: int) -> int:
        """See `Backend.pack`: what was written is read back and must be exactly the piece."""
        if not self._to_scratch(seq, start, end, kind):
            return 0
        try:
            size = int(lib.llama_state_seq_get_size(self._context, self._scratch))
            if size > capacity:
                return 0
            written = int(lib.llama_state_seq_get_data(self._context, address_of(address), size, self._scratch))
        finally:
            self._sequences.remove(self._scratch)
        return size if written == size and self._is_piece(address, size, start, end, kind) else 0

    def restore(self, seq: int, start: int, end: int, kind: PieceKind, address: int, size: int, use_end: int) -> bool:
        """See `Backend.restore`."""
        if not self._is_piece(address, size, start, end, kind):
            return False
        read = int(lib.llama_state_seq_set_data(self._context, address_of(address), size, self._scratch))
        if read != size:
            # A failed restore can leave cells with position -1 behind, and decoding on them is accepted.
            self._sequences.remove(self._scratch)
            return False
        self._sequences.release(seq)
        self._sequences.copy(self._scratch, seq, start, end)
        self._sequences.remove(self._scratch)
        return self._settle(seq, start, end, kind, use_end)

    def _settle(self, seq: int, start: int, end: int, kind: PieceKind, use_end: int) -> bool:
        if self._facts.has_recurrent and kind is PieceKind.CELLS:
            self._sequences.set_incomplete(seq, end)
            return True
        self._sequences.set_complete(seq)
        if not self._sequences.ends_at(seq, end):
            self._take_back(seq, start)
            return False
        if use_end < end:
            self._sequences.cut(seq, use_end)
        return True

    def _take_back(self, seq: int, start: int) -> None:
        if self._facts.can_truncate and start:
            self._sequences.cut(seq, start)
        else:
            self._sequences.clear(seq)

    def _to_scratch(self, seq: int, start: int, end: int, kind: PieceKind) -> bool:
        sequences = self._sequences
        length = sequences.length(seq)
        if end > length or not sequences.is_usable(seq):
            return False
        if kind is PieceKind.SNAPSHOT and (end != length or not self._facts.has_recurrent):
            return False
        sequences.copy(seq, self._scratch, start, end)
        if self._facts.has_recurrent and kind is PieceKind.CELLS:
            sequences.strip_recurrent(self._scratch)
        return True

    def _is_piece(self, address: int, size: int, start: int, end: int, kind: PieceKind) -> bool:
        contents = read_blob(address, size, self._layouts)
        return contents is not None and contents.is_exactly(
            start, end, self._facts.n_swa, with_state=kind is PieceKind.SNAPSHOT
        )


def address_of(address: int) -> Any:
    """An address as the byte pointer that the state functions take."""
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
