"""Fills the arrays of a decode, without allocating: one set of arrays for the life of the engine. Engine thread only."""

from array import array

import numpy as np

from workers.backend.values import Rows


class Batch:
    """Rows of the next decode. `add` in the order of the plan, then `rows`."""

    def __init__(self, max_rows: int) -> None:
        self._tokens = np.zeros(max_rows, np.int32)
        self._positions = np.zeros(max_rows, np.int32)
        self._seqs = np.zeros(max_rows, np.int32)
        self._outputs = np.zeros(max_rows, np.bool_)
        self._ramp = np.arange(max_rows, dtype=np.int32)
        self.num_rows = 0

    def clear(self) -> None:
        """Begin anew."""
        self.num_rows = 0

    def add_one(self, seq: int, token: int, position: int) -> None:
        """A decoding sequence's row: one token, whose logits are wanted."""
        at = self.num_rows
        self._tokens[at] = token
        self._positions[at] = position
        self._seqs[at] = seq
        self._outputs[at] = True
        self.num_rows = at + 1

    def add_run(self, seq: int, tokens: "array[int]", start: int, num_outputs: int) -> None:
        """`tokens` at positions from `start` on; logits are wanted of the last `num_outputs` of them."""
        at, end = self.num_rows, self.num_rows + len(tokens)
        self._tokens[at:end] = np.frombuffer(tokens, np.uint32)
        np.add(self._ramp[: len(tokens)], start, out=self._positions[at:end])
        self._seqs[at:end] = seq
        self._outputs[at:end] = False
        if num_outputs:
            self._outputs[end - num_outputs : end] = True
        self.num_rows = end

    def rows(self) -> Rows:
        """What was added, as views."""
        end = self.num_rows
        return Rows(self._tokens[:end], self._positions[:end], self._seqs[:end], self._outputs[:end])
