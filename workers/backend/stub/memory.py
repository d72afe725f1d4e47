"""The stub's KV: shared cells with owners, as llama.cpp's unified cache has, and recurrent state for the kinds that
need it.

Owned by `StubBackend`, used by the engine thread alone. A cell holds the hash of one position; a sequence is a list
of cells; a cell is free when no sequence lists it. Recurrent state is one `Digest` per sequence and cannot be cut.
"""

import ctypes
import struct
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.backend.stub.brain import Digest
from workers.backend.values import PieceKind

CELL = np.dtype([("hash", "<u8"), ("match", "<u4"), ("position", "<u4")])
_HEADER = struct.Struct("<4sB3xII")
_STATE = struct.Struct("<QII")
_MAGIC = b"STUB"
_KIND_BYTE = {PieceKind.CELLS: 0, PieceKind.SNAPSHOT: 1}


@dataclass(slots=True)
class _Sequence:
    cells: "array[int]" = field(default_factory=lambda: array("i"))
    state: Digest = field(default_factory=Digest)
    state_length: int = 0


class StubMemory:
    """Cells, sequences and their stored form."""

    def __init__(self, num_cells: int, num_seqs: int, *, has_cells: bool, has_recurrent: bool) -> None:
        self._cells: NDArray[np.void] = np.zeros(num_cells if has_cells else 0, CELL)
        self._num_owners: NDArray[np.int32] = np.zeros(len(self._cells), np.int32)
        self._seqs = [_Sequence() for _ in range(num_seqs)]
        self._has_cells = has_cells
        self._has_recurrent = has_recurrent

    @property
    def num_used_cells(self) -> int:
        return int(np.count_nonzero(self._num_owners))

    def length(self, seq: int) -> int:
        held = self._seqs[seq]
        return len(held.cells) if self._has_cells else held.state_length

    def is_usable(self, seq: int) -> bool:
        """False between restored cells and the snapshot that completes them."""
        return not self._has_recurrent or self._seqs[seq].state_length == self.length(seq)

    def digest(self, seq: int) -> Digest:
        """What the brain goes on from; built from what is stored, so that wrong cells make wrong answers."""
        held = self._seqs[seq]
        if not self._has_cells:
            return held.state
        used = self._cells[np.frombuffer(held.cells, np.int32)]
        total = int(used["hash"].sum(dtype=np.uint64))
        match = int(used["match"][-1]) if len(used) else 0
        if self._has_recurrent and held.state.total != total:
            total ^= held.state.total
        return Digest(total, match)

    def append(self, seq: int, hashes: list[int], after: list[Digest]) -> bool:
        """Add one position per hash; `after` are the digests with each. False, and no change, without free cells."""
        held = self._seqs[seq]
        if self._has_cells:
            values = np.zeros(len(hashes), CELL)
            values["hash"] = hashes
            values["match"] = [digest.match for digest in after]
            values["position"] = np.arange(len(held.cells), len(held.cells) + len(hashes))
            if not self._append_cells(held, values):
                return False
        held.state = after[-1]
        held.state_length += len(hashes)
        return True

    def fits(self, num_cells: int) -> bool:
        """Whether so many cells are free."""
        return not self._has_cells or len(self._cells) - self.num_used_cells >= num_cells

    def share(self, src: int, dst: int, end: int) -> bool:
        if self._has_recurrent and end != self.length(src):
            return False
        source, target = self._seqs[src], self._seqs[dst]
        target.cells = source.cells[:end]
        self._own(target.cells, +1)
        target.state, target.state_length = source.state, end
        return True

    def truncate(self, seq: int, end: int) -> bool:
        if end == self.length(seq) and self.is_usable(seq):
            return True
        if self._has_recurrent and end:
            return False
        held = self._seqs[seq]
        self._own(held.cells[end:], -1)
        del held.cells[end:]
        held.state, held.state_length = Digest(), end
        return True

    def clear(self, seq: int) -> None:
        self.truncate(seq, 0)

    # --- stored form: header, cells, and for a snapshot the state
    # ------------------------------------------------------

    def piece_size(self, seq: int, start: int, end: int, kind: PieceKind) -> int:
        if (
            end > self.length(seq)
            or not self.is_usable(seq)
            or (kind is PieceKind.SNAPSHOT and (end != self.length(seq) or not self._has_recurrent))
        ):
            return 0
        return self._size(end - start, kind)

    def pack(self, seq: int, start: int, end: int, kind: PieceKind, address: int, capacity: int) -> int:
        size = self.piece_size(seq, start, end, kind)
        if not size or size > capacity:
            return 0
        held = self._seqs[seq]
        blob = _HEADER.pack(_MAGIC, _KIND_BYTE[kind], start, end)
        blob += self._cells[np.frombuffer(held.cells[start:end], np.int32)].tobytes()
        if kind is PieceKind.SNAPSHOT:
            blob += _STATE.pack(held.state.total, held.state.match, held.state_length)
        ctypes.memmove(address, blob, size)
        return size

    def restore(self, seq: int, start: int, end: int, kind: PieceKind, address: int, size: int) -> bool:
        """Append a piece; False and no change where the bytes are none of `[start, end)`, or no cells are free."""
        if size != self._size(end - start, kind):
            return False
        blob = ctypes.string_at(address, size)
        if _HEADER.unpack_from(blob) != (_MAGIC, _KIND_BYTE[kind], start, end):
            return False
        held = self._seqs[seq]
        if self._has_cells:
            cells = np.frombuffer(blob, CELL, count=end - start, offset=_HEADER.size)
            if not self._append_cells(held, cells):
                return False
        if kind is PieceKind.SNAPSHOT:
            total, match, length = _STATE.unpack_from(blob, size - _STATE.size)
            held.state, held.state_length = Digest(total, match), length
        return True

    def _size(self, num_tokens: int, kind: PieceKind) -> int:
        cells = num_tokens * CELL.itemsize if self._has_cells else 0
        return _HEADER.size + cells + (_STATE.size if kind is PieceKind.SNAPSHOT else 0)

    def _append_cells(self, held: _Sequence, values: NDArray[np.void]) -> bool:
        free = np.flatnonzero(self._num_owners == 0)[: len(values)]
        if len(free) < len(values):
            return False
        self._cells[free] = values
        self._num_owners[free] = 1
        held.cells.extend(free.tolist())
        return True

    def _own(self, cells: "array[int]", by: int) -> None:
        # A sequence lists no cell twice, so plain indexing counts right.
        self._num_owners[np.frombuffer(cells, np.int32)] += by
