"""What the stub "computes": a chain of hashes over the tokens, and logits from it. Pure.

The hash of a position depends on every earlier position, as a KV cell does, and the logits depend on every hash of the
sequence. So a cell that is missing, foreign or out of place changes all later answers, and a test sees it.

A scripted answer (`emit`) is also a pure function of the tokens: with `match` the length of the longest beginning of
the script that the tokens end with, the next token is the script's `match`-th, and the end of generation after its
last. That holds through restores, resumed streams and any company, without knowing where the prompt ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workers.backend.stub.vocabulary import EOS, SPECIAL_IDS, VOCAB_SIZE
from workers.backend.values import Logits

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_SCRIPTED_LOGIT = 40.0
_IDS = np.arange(1, VOCAB_SIZE + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


@dataclass(frozen=True, slots=True)
class Digest:
    """A sequence as the stub sees it: the sum of its hashes, and how much of the script it ends with."""

    total: int = 0
    match: int = 0


def _readable_bias() -> Logits:
    """Unscripted answers consist of lower-case letters and spaces, so that they look like text in a terminal."""
    bias = np.full(VOCAB_SIZE, -16.0, np.float32)
    bias[ord("a") : ord("z") + 1] = 0.0
    bias[ord(" ")] = 2.0
    return bias


_BIAS = _readable_bias()


def mix(value: int) -> int:
    """The finaliser of splitmix64: every bit of a 64-bit value depends on every other."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Brain:
    """Hashes tokens and makes logits; holds only its script and salt."""

    def __init__(self, salt: int, script: Sequence[int]) -> None:
        self._salt = mix((salt + _GOLDEN) & _MASK)
        self._script = list(script)
        self._fallback = _fallbacks(self._script)

    def step(self, before: Digest, token: int, adapter_salt: int) -> tuple[int, Digest]:
        """The hash of `token` after `before`, and the digest with it."""
        hashed = mix((before.total ^ self._salt ^ adapter_salt) + (token + 1) * _GOLDEN & _MASK)
        return hashed, Digest((before.total + hashed) & _MASK, self._advance(before.match, token))

    def logits(self, digest: Digest) -> Logits:
        """The logits after a sequence, shape (VOCAB_SIZE,)."""
        values = _IDS + np.uint64(mix(digest.total ^ self._salt))
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        logits = (values >> np.uint64(40)).astype(np.float32) * np.float32(8.0 / (1 << 24)) + _BIAS
        if self._script:
            ended = digest.match == len(self._script)
            logits[SPECIAL_IDS[EOS] if ended else self._script[digest.match]] = _SCRIPTED_LOGIT
        return logits

    def _advance(self, match: int, token: int) -> int:
        script = self._script
        if not script:
            return 0
        while match and (match == len(script) or script[match] != token):
            match = self._fallback[match - 1]
        return match + 1 if script[match] == token else 0


def _fallbacks(script: Sequence[int]) -> list[int]:
    """Knuth, Morris, Pratt: for each beginning of `script`, the longest proper beginning that it also ends with."""
    table = [0] * len(script)
    match = 0
    for index in range(1, len(script)):
        while match and script[index] != script[match]:
            match = table[match - 1]
        match += script[index] == script[match]
        table[index] = match
    return table
