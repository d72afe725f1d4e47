"""One llama.cpp context: batches in, logits out. Owned by `LlamaBackend`, used by the engine thread alone.

Rows are copied into numpy arrays that the native batch points at: 512 rows cost 1 µs that way, 210 µs through ctypes
fields.
"""

import ctypes
from typing import Any

import numpy as np

from workers.backend.llama.library import NATIVE_LOG, AbortFlag, lib, logits_address
from workers.backend.values import BackendFault, DecodeStatus, Logits, Rows

_STATUS = {0: DecodeStatus.OK, 1: DecodeStatus.NO_SPACE, 2: DecodeStatus.ABORTED}


class Batch:
    """A `llama_batch` over memory of our own, one sequence per row. It must outlive every decode that uses it."""

    def __init__(self, max_rows: int) -> None:
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._seqs = np.zeros(max_rows, np.int32)
        self._outputs = np.zeros(max_rows, np.int8)
        self._num_seqs = np.ones(max_rows, np.int32)
        # llama.cpp wants an array of pointers, one list of sequences per row.
        self._seq_pointers = self._seqs.ctypes.data + 4 * np.arange(max_rows, dtype=np.uint64)
        self.native = lib.llama_batch()
        self.native.token = _pointer(self._tokens, lib.llama_token)
        self.native.pos = _pointer(self._positions, lib.llama_pos)
        self.native.n_seq_id = _pointer(self._num_seqs, ctypes.c_int32)
        self.native.seq_id = ctypes.cast(self._seq_pointers.ctypes.data, type(self.native.seq_id))
        self.native.logits = _pointer(self._outputs, ctypes.c_int8)

    def fill(self, rows: Rows) -> None:
        count = len(rows)
        self._tokens[:count] = rows.tokens
        self._positions[:count] = rows.positions
        self._seqs[:count] = rows.seqs
        self._outputs[:count] = rows.outputs
        self.native.n_tokens = count


def view_floats(native: Any) -> Logits:
    """A ctypes float array as numpy, without a copy."""
    view: Logits = np.frombuffer(native, np.float32)
    return view


def _pointer(array: Any, element: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(element))


class Context:
    """A context that generates, and the logits of its last decode."""

    def __init__(self, native: Any, n_vocab: int, max_rows: int, abort: AbortFlag) -> None:
        self.native = native
        self.memory = lib.llama_get_memory(native)
        self._row_type = ctypes.c_float * n_vocab
        self._row_views: dict[int, Logits] = {}
        self._batch = Batch(max_rows)
        self._outputs: Any = ()
        self._abort = abort
        abort.install(native)

    def decode(self, rows: Rows) -> DecodeStatus:
        """Compute rows that have been checked.

        Raises:
            BackendFault: llama.cpp failed.
        """
        self._batch.fill(rows)
        self._outputs = ()
        NATIVE_LOG.clear()
        code = lib.llama_decode(self.native, self._batch.native)
        # On a GPU the above has only begun the work; whoever asks for logits would wait, with the GIL.
        lib.llama_synchronize(self.native)
        status = _STATUS.get(code)
        if status is None:
            raise BackendFault(f"llama_decode returned {code}: {NATIVE_LOG.reason('no reason given')}")
        if status is DecodeStatus.OK:
            self._outputs = rows.outputs.copy()
        elif status is DecodeStatus.ABORTED:
            self._abort.clear()
        return status

    def require_output(self, row: int) -> None:
        """Assert that a row has logits: llama.cpp ends the process where it has none."""
        assert 0 <= row < len(self._outputs) and self._outputs[row], f"row {row} of the last decode has no logits"

    def logits(self, row: int) -> Logits:
        """The logits of a row of the last decode, valid until the next: a view of llama.cpp's own buffer."""
        self.require_output(row)
        address = logits_address(self.native, row)
        view = self._row_views.get(address)
        if view is None:  # the buffer moves when it grows, which is rare: a handful of addresses in all
            view = self._row_views[address] = view_floats(self._row_type.from_address(address))
        return view

    def close(self) -> None:
        if self.native is not None:
            lib.llama_free(self.native)
        self.native = self.memory = None
        self._outputs = ()
