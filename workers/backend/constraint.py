"""Which tokens a grammar allows: one `Constraint` per request, over machines that requests with the same grammar share.

`Constraints.check` may be called from any thread; everything else belongs to the engine thread, machines included,
which are only built, never used, by `check`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import SamplingParams
from workers.backend.gbnf import GbnfError, parse_gbnf
from workers.backend.gbnf_machine import Machine, State

MAX_GRAMMAR_CHARS = 64 << 10
MAX_MACHINES = 32
MAX_MASKS = 32
"""Masks kept per grammar: one byte per token of the vocabulary each."""

Mask = NDArray[np.bool_]
_T = TypeVar("_T")
_Source = tuple[str, str]
"""Field (`grammar` or `json_schema`) and its text."""


class TokenTable:
    """The vocabulary in the order of its bytes, so that tokens with a common beginning are checked together."""

    def __init__(self, pieces: Sequence[bytes], eog_ids: frozenset[int]) -> None:
        self.pieces = pieces
        self.eog_ids = eog_ids
        order = sorted((piece, token) for token, piece in enumerate(pieces) if piece and token not in eog_ids)
        self.sorted = [
            (piece, token, _common(piece, before))
            for (piece, token), (before, _) in zip(order, [(b"", 0), *order], strict=False)
        ]


def _common(left: bytes, right: bytes) -> int:
    length = min(len(left), len(right))
    return next((index for index in range(length) if left[index] != right[index]), length)


class _Shared:
    """A grammar's machine and the masks of its latest states."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.masks: OrderedDict[State, Mask] = OrderedDict()


class Constraint:
    """One request's place in its grammar."""

    def __init__(self, shared: _Shared, table: TokenTable, field: str) -> None:
        self._shared = shared
        self._table = table
        self._field = field
        self._state = shared.machine.start

    def allows(self, token: int) -> bool:
        """Whether `token` may come next.

        Raises:
            InvalidRequest: the grammar has too many ways to go on.
        """
        if token in self._table.eog_ids:
            return self._state.is_end
        return self._after(token) is not None

    def accept(self, token: int) -> None:
        """Go on by `token`. The end of generation leaves the place as it is.

        Raises:
            InvalidRequest: it is not allowed here (a resumed answer that this grammar did not make), or too many ways.
        """
        if not self.allows(token):
            raise InvalidRequest(f"the answer so far does not follow the {self._field}", field=self._field)
        if token not in self._table.eog_ids:
            state = self._after(token)
            assert state is not None
            self._state = state

    def mask(self) -> Mask:
        """Which tokens may come next, shape (n_vocab,). Milliseconds where few may, a tenth of a second where most may.

        Raises:
            InvalidRequest: no token may, or too many ways.
        """
        masks = self._shared.masks
        mask = masks.get(self._state)
        if mask is None:
            mask = masks[self._state] = self._limited(self._compute_mask)
            if len(masks) > MAX_MASKS:
                masks.popitem(last=False)
        masks.move_to_end(self._state)
        if not mask.any():
            raise InvalidRequest(f"the {self._field} allows no token of this model here", field=self._field)
        return mask

    def _after(self, token: int) -> State | None:
        piece = self._table.pieces[token]
        return self._limited(lambda: self._walk(piece)) if piece else None

    def _walk(self, piece: bytes) -> State | None:
        state: State | None = self._state
        step = self._shared.machine.step
        for byte in piece:
            if state is None:
                break
            state = step(state, byte)
        return state

    def _compute_mask(self) -> Mask:
        step = self._shared.machine.step
        mask = np.zeros(len(self._table.pieces), np.bool_)
        mask[list(self._table.eog_ids)] = self._state.is_end
        path = [self._state]  # path[n] is the state after n bytes of the token at hand
        dead_length = 1 << 30  # so many bytes of the token at hand lead nowhere
        for piece, token, common in self._table.sorted:
            if common >= dead_length:
                continue
            del path[common + 1 :]
            dead_length = 1 << 30
            for depth in range(len(path) - 1, len(piece)):
                state = step(path[-1], piece[depth])
                if state is None:
                    dead_length = depth + 1
                    break
                path.append(state)
            else:
                mask[token] = True
        return mask

    def _limited(self, work: Callable[[], _T]) -> _T:
        self._shared.machine.refill()
        try:
            return work()
        except GbnfError as error:
            raise InvalidRequest(f"the {self._field} cannot be followed: {error}", field=self._field) from error


class Constraints:
    """Grammars of one model, the least recently used leaving first. One lock guards the machines, one the token table."""

    def __init__(self, make_table: Callable[[], TokenTable], schema_to_gbnf: Callable[[str], str]) -> None:
        """`make_table` is called once, when the first grammar is used."""
        self._make_table = make_table
        self._schema_to_gbnf = schema_to_gbnf
        self._table: TokenTable | None = None
        self._table_lock = threading.Lock()
        self._lock = threading.Lock()
        self._shared: OrderedDict[_Source, _Shared] = OrderedDict()

    def check(self, params: SamplingParams) -> None:
        """Read the grammar of `params`, if any, and keep it for `make`. From any thread.

        Raises:
            InvalidRequest: it does not parse, or is out of bounds; names the field.
        """
        source = _source_of(params)
        if source is not None:
            self._read(source)
            self._token_table()

    def make(self, params: SamplingParams) -> Constraint | None:
        """A constraint at the grammar's beginning; None where `params` name no grammar.

        Raises:
            InvalidRequest: as `check`.
        """
        source = _source_of(params)
        if source is None:
            return None
        return Constraint(self._read(source), self._token_table(), source[0])

    def _token_table(self) -> TokenTable:
        with self._table_lock:
            if self._table is None:
                self._table = self._make_table()
            return self._table

    def _read(self, source: _Source) -> _Shared:
        with self._lock:
            shared = self._shared.get(source)
        if shared is None:
            shared = _Shared(self._build(*source))
        with self._lock:
            shared = self._shared.setdefault(source, shared)
            self._shared.move_to_end(source)
            if len(self._shared) > MAX_MACHINES:
                self._shared.popitem(last=False)
        return shared

    def _build(self, field: str, text: str) -> Machine:
        if len(text) > MAX_GRAMMAR_CHARS:
            raise InvalidRequest(f"{field} is larger than {MAX_GRAMMAR_CHARS} characters", field=field)
        grammar = self._schema_to_gbnf(text) if field == "json_schema" else text
        try:
            return Machine(parse_gbnf(grammar))
        except GbnfError as error:
            raise InvalidRequest(f"{field} cannot be used: {error}", field=field) from error


def _source_of(params: SamplingParams) -> _Source | None:
    if params.json_schema:
        return "json_schema", params.json_schema
    return ("grammar", params.grammar) if params.grammar else None
