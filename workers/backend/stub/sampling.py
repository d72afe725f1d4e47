"""Choosing tokens in numpy: the same parameters as llama.cpp's chain. One `StubSampler` per request."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from erllama_host.protocol.inference import SamplingParams
from workers.backend.checks import check_bias
from workers.backend.constraint import Constraint
from workers.backend.stub.vocabulary import VOCAB_SIZE
from workers.backend.values import Logits


class StubSampler:
    """See `Sampler`."""

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        constraint: Constraint | None,
        read_row: Callable[[int], Logits],
        on_sample: Callable[[], None],
    ) -> None:
        """`read_row` gives the logits of a row of the last decode; `on_sample` hears of every sampled token.

        Raises:
            InvalidRequest: a biased token is out of range.
        """
        check_bias(params.logit_bias, VOCAB_SIZE)
        self._params = params
        self._bias = _bias_row(params.logit_bias)
        self._random = np.random.Generator(np.random.PCG64(seed if params.seed is None else params.seed))
        self._constraint = constraint
        self._read_row = read_row
        self._on_sample = on_sample
        last_n = params.penalty_last_n
        self._recent: deque[int] = deque(maxlen=None if last_n < 0 else last_n)

    def prime(self, ids: Sequence[int]) -> None:
        self._recent.extend(ids)

    def replay(self, ids: Sequence[int]) -> None:
        for token in ids:
            self._accept(token)
            self._draw()

    def sample(self, row: int) -> int:
        return self.sample_from(self._read_row(row))

    def sample_from(self, logits: Logits) -> int:
        if self._constraint is not None:
            logits = np.where(self._constraint.mask(), logits, np.float32(-np.inf))
        token = self._choose(self._penalized(logits + self._bias))
        self._accept(token)
        self._on_sample()
        return token

    def _accept(self, token: int) -> None:
        if self._constraint is not None:
            self._constraint.accept(token)
        self._recent.append(token)

    def close(self) -> None:
        """Nothing is held."""

    def _draw(self) -> float:
        return float(self._random.random()) if self._params.temperature > 0 else 0.0

    def _penalized(self, logits: Logits) -> Logits:
        params = self._params
        if not self._recent or (
            params.repetition_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0
        ):
            return logits
        ids, counts = np.unique(np.fromiter(self._recent, np.int64), return_counts=True)
        seen = logits[ids]
        seen = np.where(seen <= 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
        logits[ids] = seen - counts * params.frequency_penalty - params.presence_penalty
        return logits

    def _choose(self, logits: Logits) -> int:
        params = self._params
        if params.temperature <= 0:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if params.top_k > 0:
            order = order[: params.top_k]
        chances = _softmax(logits[order])
        order, chances = _typical(order, chances, params.typical_p)
        if params.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(chances), params.top_p)) + 1
            order, chances = order[:keep], chances[:keep]
        kept = chances >= params.min_p * chances.max()
        order = order[kept]
        cumulated = np.cumsum(_softmax(logits[order] / params.temperature))
        return int(order[min(int(np.searchsorted(cumulated, self._draw(), side="right")), len(order) - 1)])


def _softmax(logits: Logits) -> Logits:
    weights: Logits = np.exp(logits - logits.max())
    chances: Logits = weights / weights.sum()
    return chances


def _typical(order: np.ndarray, chances: Logits, typical_p: float) -> tuple[np.ndarray, Logits]:
    """Keep the tokens whose surprise is nearest to the expected one, likeliest first, up to `typical_p` in sum."""
    if typical_p >= 1:
        return order, chances
    surprise = -np.log(np.maximum(chances, 1e-30))
    nearest = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
    keep = np.sort(nearest[: int(np.searchsorted(np.cumsum(chances[nearest]), typical_p)) + 1])
    return order[keep], chances[keep]


def _bias_row(bias: dict[str, float]) -> Logits:
    row = np.zeros(VOCAB_SIZE, np.float32)
    for text, value in bias.items():
        row[int(text)] = value
    return row
