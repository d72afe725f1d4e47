"""Samplers: one chain per request, and a grammar beside it. Engine thread only.

The order of the chain is llama.cpp's own: bias, penalties, top-k, typical, top-p, min-p, temperature, draw. A grammar
is asked after the draw, about the one token, and only when it refuses are all tokens masked and one drawn again.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from erllama_host.protocol.inference import SamplingParams
from workers.backend.checks import check_bias
from workers.backend.constraint import Constraint
from workers.backend.llama.context import Context
from workers.backend.llama.library import lib
from workers.backend.values import Logits

_RANDOM_SEED = 0xFFFFFFFF
"""LLAMA_DEFAULT_SEED: llama.cpp would draw one itself, and the answer could not be repeated."""
_SMALLEST, _LARGEST = 1e-12, 1e12
"""Bounds of a temperature, a penalty, a bias: what they all together make of a logit must be a number in 32 bits. Beyond, the
chain would draw anything at all."""
_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])


class Candidates:
    """A `llama_token_data_array` over memory of our own. Samplers sort and shrink it, so it is filled anew every time."""

    def __init__(self, size: int) -> None:
        self._ids = np.arange(size, dtype=np.int32)
        self._data = np.zeros(size, _CANDIDATE)
        self._native = lib.llama_token_data_array()
        self._native.data = ctypes.cast(self._data.ctypes.data, type(self._native.data))

    def fill(self, logits: Logits) -> None:
        self._data["id"] = self._ids
        self._data["logit"] = logits
        self._native.size = len(self._data)
        self._native.selected = -1
        self._native.sorted = False

    def apply(self, sampler: Any) -> None:
        lib.llama_sampler_apply(sampler, ctypes.byref(self._native))

    @property
    def selected(self) -> int:
        """The token that a chain has chosen."""
        index = self._native.selected
        assert 0 <= index < self._native.size, "the chain chose nothing"
        return int(self._data["id"][index])


class LlamaSampler:
    """See `Sampler`."""

    def __init__(
        self,
        chain: Any,
        constraint: Constraint | None,
        params: SamplingParams,
        context: Callable[[], Context],
        n_vocab: int,
    ) -> None:
        """Takes `chain` over. `context` is asked at every sample, since a context may be made anew."""
        self._chain = chain
        self._constraint = constraint
        self._context = context
        self._draws = params.temperature > 0
        self._is_argmax = is_argmax(params)
        self._counts_tokens = has_penalties(params)
        self._n_vocab = n_vocab
        self._candidates: Candidates | None = None

    def prime(self, ids: Sequence[int]) -> None:
        if self._counts_tokens:
            for token in ids:
                lib.llama_sampler_accept(self._chain, token)

    def replay(self, ids: Sequence[int]) -> None:
        """As `Sampler.replay`. Under a grammar the number of earlier draws is not known exactly, so a stream that is
        resumed with a temperature goes on validly, but maybe with other random numbers."""
        one = Candidates(1)
        draw = lib.llama_sampler_chain_get(self._chain, lib.llama_sampler_chain_n(self._chain) - 1)
        for token in ids:
            self._accept(token)
            if self._draws:
                one.fill(np.zeros(1, np.float32))
                one.apply(draw)

    def sample(self, row: int) -> int:
        context = self._context()
        if self._constraint is not None or self._is_argmax:
            return self.sample_from(context.logits(row))
        context.require_output(row)
        return int(lib.llama_sampler_sample(self._chain, context.native, row))

    def sample_from(self, logits: Logits) -> int:
        token = self._choose(logits)
        if self._constraint is not None and not self._constraint.allows(token):
            token = self._choose(np.where(self._constraint.mask(), logits, np.float32(-np.inf)))
        self._accept(token)
        return token

    def close(self) -> None:
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
        self._chain = None

    def _choose(self, logits: Logits) -> int:
        if self._is_argmax:
            # What the greedy chain does, of the first of equals too, in a tenth of its time: it copies every logit beforehand
            # (of 49 152 tokens: 84 µs, at every token of every stream).
            return int(logits.argmax())
        # A sampler that never sees stored logits or a grammar does without this memory (12 bytes a token).
        if self._candidates is None:
            self._candidates = Candidates(self._n_vocab)
        self._candidates.fill(logits)
        self._candidates.apply(self._chain)
        return self._candidates.selected

    def _accept(self, token: int) -> None:
        if self._constraint is not None:
            self._constraint.accept(token)
        lib.llama_sampler_accept(self._chain, token)


def is_argmax(params: SamplingParams) -> bool:
    """Whether the likeliest token is chosen as the logits have it: greedy, and nothing that changes logits."""
    return params.temperature <= 0 and not params.logit_bias and not has_penalties(params)


def has_penalties(params: SamplingParams) -> bool:
    """Whether any penalty is on."""
    return params.penalty_last_n != 0 and (
        params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
    )


def make_chain(params: SamplingParams, seed: int, n_vocab: int, n_ctx: int) -> Any:
    """The chain for `params`; parts that change nothing are left out.

    Raises:
        InvalidRequest: a biased token is out of range.
    """
    biases = _biases(params.logit_bias, n_vocab)
    options = lib.llama_sampler_chain_default_params()
    options.no_perf = True
    chain = lib.llama_sampler_chain_init(options)
    for part in _parts(params, seed, n_vocab, n_ctx, biases):
        lib.llama_sampler_chain_add(chain, part)
    return chain


def _parts(params: SamplingParams, seed: int, n_vocab: int, n_ctx: int, biases: Any) -> list[Any]:
    parts = []
    if len(biases):
        parts.append(lib.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
    if has_penalties(params):
        last_n = n_ctx if params.penalty_last_n < 0 else params.penalty_last_n
        repetition = max(_SMALLEST, params.repetition_penalty)
        parts.append(
            lib.llama_sampler_init_penalties(
                n_vocab, last_n, repetition, params.frequency_penalty, params.presence_penalty
            )
        )
    if params.temperature <= 0:
        return [*parts, lib.llama_sampler_init_greedy()]
    if params.top_k > 0:
        parts.append(lib.llama_sampler_init_top_k(params.top_k))
    if params.typical_p < 1:
        parts.append(lib.llama_sampler_init_typical(params.typical_p, 1))
    if params.top_p < 1:
        parts.append(lib.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        parts.append(lib.llama_sampler_init_min_p(params.min_p, 1))
    chosen = seed if params.seed is None else params.seed
    return [
        *parts,
        lib.llama_sampler_init_temp(max(_SMALLEST, params.temperature)),
        lib.llama_sampler_init_dist(_RANDOM_SEED - 1 if chosen == _RANDOM_SEED else chosen),
    ]


def _biases(bias: dict[str, float], n_vocab: int) -> Any:
    check_bias(bias, n_vocab)
    rows = (lib.llama_logit_bias * len(bias))()
    for row, (token, value) in zip(rows, bias.items(), strict=True):
        row.token, row.bias = int(token), min(_LARGEST, value)
    return rows
