"""Embeddings: a second context on the same weights, made at the first use. Owned by `LlamaBackend`; engine thread only.

Mean pooling covers only the last computation of a text: one that crosses into a second gets a wrong vector without an
error. So a batch never exceeds one computation (n_ubatch), and longer texts are refused before they get here.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.backend.llama.context import Batch, view_floats
from workers.backend.llama.library import NATIVE_LOG, lib
from workers.backend.values import BackendFault, Rows

MAX_TEXTS = 64
"""Texts of one computation, each a sequence of its own."""


class Embedder:
    """A context that embeds."""

    def __init__(self, native: Any, n_embd: int, max_tokens: int) -> None:
        self.native = native
        self._memory = lib.llama_get_memory(native)
        self._vector_type = ctypes.c_float * n_embd
        self._max_tokens = max_tokens
        self._batch = Batch(max_tokens)

    def embed(self, texts: Sequence[Sequence[int]], *, normalize: bool) -> list[NDArray[np.float32]]:
        """One vector per text; every text fits into one computation."""
        vectors: list[NDArray[np.float32]] = []
        for group in group_texts(texts, self._max_tokens, MAX_TEXTS):
            vectors += self._embed_group(group)
        return [_unit(vector) for vector in vectors] if normalize else vectors

    def _embed_group(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        tokens = np.concatenate([np.asarray(ids, np.int32) for ids in texts])
        self._batch.fill(
            Rows(
                tokens=tokens,
                positions=np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in texts]),
                seqs=np.repeat(np.arange(len(texts), dtype=np.int32), [len(ids) for ids in texts]),
                outputs=np.ones(len(tokens), np.bool_),
            )
        )
        NATIVE_LOG.clear()
        code = lib.llama_decode(self.native, self._batch.native)
        if code != 0:
            raise BackendFault(f"llama_decode returned {code} for embeddings: {NATIVE_LOG.reason('no reason given')}")
        return [self._vector(seq) for seq in range(len(texts))]

    def _vector(self, seq: int) -> NDArray[np.float32]:
        pointer = lib.llama_get_embeddings_seq(self.native, seq)
        if not pointer:
            raise BackendFault(f"llama.cpp made no embedding for sequence {seq}")
        return view_floats(self._vector_type.from_address(ctypes.addressof(pointer.contents))).copy()

    def close(self) -> None:
        if self.native is not None:
            lib.llama_free(self.native)
        self.native = None


def group_texts(texts: Sequence[Sequence[int]], max_tokens: int, max_texts: int) -> Iterator[list[Sequence[int]]]:
    """Cut `texts` into runs of at most `max_tokens` tokens and `max_texts` texts, in order. Pure."""
    group: list[Sequence[int]] = []
    num_tokens = 0
    for ids in texts:
        if group and (num_tokens + len(ids) > max_tokens or len(group) == max_texts):
            yield group
            group, num_tokens = [], 0
        group.append(ids)
        num_tokens += len(ids)
    if group:
        yield group


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector
