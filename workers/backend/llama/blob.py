"""The layout of what `llama_state_seq_get_data` writes, read back in place to check a piece. Pure but for reading
memory.

llama.cpp restores what it is given: a block with a hole in its window is accepted, and later logits are wrong by less
than the numeric noise of a batch. So every piece is checked by its structure, when it is packed and before it is
restored: it must hold exactly the positions it is said to hold.

    offset  size
    0       4     magic
    4       4     sequence id it was written from (ours is always the scratch id)
    then one cell part (attention), a second one (sliding window), and one recurrent part, as the model has them:

    cell part       4     number of streams, 1
                    4     number of cells n; where it is 0 the part ends here
                    n·r   cell records: i32 position, u32 number of sequence ids (1), [8 bytes 2-D position], i32
                    sequence id 4     whether V is transposed, 0 4     number of layers per layer: i32 type, u64 row
                    size, n rows of K; then the same of V, where the model keeps a V
    recurrent part  4     number of cells, 0 or 1; then i32 position, u32 0; then data up to the end

Which of the variants a model uses is found by trying: the right one ends exactly at the end of the piece.

This runs before every restored block, while the engine waits, on bytes that are in no processor cache: it looks at as few of them
as it must, and makes no object per layer where the layers are alike.
"""

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.backend.values import ModelFacts

_PREFIX_BYTES = 8
_U32 = struct.Struct("<I")
_TWO_U32 = struct.Struct("<II")
_ROW_HEADER = struct.Struct("<iQ")
_STATE_HEADER = struct.Struct("<IiI")
_ROW_BYTES_OFFSET = 4
_MAX_LAYERS = 4096
_READ_ONLY = 0x100  # PyBUF_READ

_view_of_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
_view_of_memory.restype = ctypes.py_object


@dataclass(frozen=True, slots=True)
class Layout:
    """One variant. `record_bytes` is 12, or 20 for models with 2-D positions; `has_values` is False for latent
    attention.
    """

    num_cell_parts: int
    record_bytes: int
    has_values: bool
    has_recurrent: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What a piece holds: positions per cell part, and the recurrent state's position (None: it has none)."""

    cells: Sequence[NDArray[np.int32]]
    state_position: int | None

    def is_exactly(self, start: int, end: int, n_swa: int, *, with_state: bool) -> bool:
        """Whether this is the complete piece of `[start, end)`; of a window part, the last `n_swa` positions count."""
        firsts = [start, max(start, end - n_swa)] if n_swa else [start]
        for positions, first in zip(self.cells, firsts[: len(self.cells)], strict=True):
            if len(positions) != end - first:
                return False
            wanted = np.arange(first, end, dtype=np.int32)
            # Nearly always in order: only otherwise they are sorted.
            if not ((positions == wanted).all() or (np.sort(positions) == wanted).all()):
                return False
        return self.state_position == (end - 1 if with_state else None)


def layouts_of(facts: ModelFacts) -> list[Layout]:
    """The variants a model of this kind may use, likeliest first."""
    if not facts.has_cells:
        return [Layout(0, 0, True, True)]
    return [
        Layout(parts, record, values, facts.has_recurrent)
        for parts in ((2, 1) if facts.n_swa else (1,))
        for record in (12, 20)
        for values in (True, False)
    ]


def read_blob(address: int, size: int, layouts: Sequence[Layout]) -> Contents | None:
    """What the piece at `address` holds; None where it has none of the layouts."""
    data = _view_of_memory(address, size, _READ_ONLY)
    for layout in layouts:
        contents = _read(data, layout)
        if contents is not None:
            return contents
    return None


def _read(data: memoryview, layout: Layout) -> Contents | None:
    try:
        offset = _PREFIX_BYTES
        cells = []
        for _ in range(layout.num_cell_parts):
            positions, offset = _read_cells(data, offset, layout)
            cells.append(positions)
        if layout.has_recurrent:
            return Contents(cells, _read_state(data, offset))
    except (struct.error, ValueError):
        # Past the end, or numbers that make no sense: not this layout.
        return None
    return Contents(cells, None) if offset == len(data) else None


def _read_cells(data: memoryview, offset: int, layout: Layout) -> tuple[NDArray[np.int32], int]:
    num_streams, count = _TWO_U32.unpack_from(data, offset)
    offset += _TWO_U32.size
    if num_streams != 1:
        raise ValueError("not one stream")
    if count == 0:
        return np.empty(0, np.int32), offset
    if offset + count * layout.record_bytes > len(data):
        raise ValueError("cells past the end")
    records: NDArray[np.int32] = np.ndarray((count, layout.record_bytes // 4), np.int32, data, offset)
    if not (records[:, 1] == 1).all():
        raise ValueError("a cell of no sequence, or of several")
    offset += count * layout.record_bytes
    transposed, num_layers = _TWO_U32.unpack_from(data, offset)
    offset += _TWO_U32.size
    if transposed or num_layers > _MAX_LAYERS:
        raise ValueError("transposed values, or too many layers")
    for _ in range(2 if layout.has_values else 1):
        offset = _skip_layers(data, offset, num_layers, count)
    if offset > len(data):
        raise ValueError("rows past the end")
    return records[:, 0].copy(), offset


def _skip_layers(data: memoryview, offset: int, num_layers: int, count: int) -> int:
    """Where the rows of all layers end that begin at `offset`. Layers of one size, the rule, are skipped in one step."""
    if not num_layers:
        return offset
    row_bytes = int(_ROW_HEADER.unpack_from(data, offset)[1])
    stride = _ROW_HEADER.size + count * row_bytes
    if offset + num_layers * stride <= len(data):
        sizes: NDArray[np.uint64] = np.ndarray((num_layers,), np.uint64, data, offset + _ROW_BYTES_OFFSET, (stride,))
        if sizes.tolist().count(row_bytes) == num_layers:
            return offset + num_layers * stride
    for _ in range(num_layers):
        offset += _ROW_HEADER.size + count * int(_ROW_HEADER.unpack_from(data, offset)[1])
    return offset


def _read_state(data: memoryview, offset: int) -> int | None:
    (count,) = _U32.unpack_from(data, offset)
    if count == 0:
        return None
    count, position, num_seqs = _STATE_HEADER.unpack_from(data, offset)
    if count != 1 or num_seqs != 0:
        raise ValueError("not one state")
    return int(position)
