"""Value types of the backend seam: what a model is, what a decode takes and gives, what stored state is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
Logits = NDArray[np.float32]


class BackendFault(RuntimeError):
    """The native library failed in a way that leaves its context in an unknown state. The worker ends on it."""


class DecodeStatus(Enum):
    """How a decode ended.

    OK: every row was computed. NO_SPACE: no free cells; nothing changed, so free some and try again. ABORTED: `abort`
    stopped it; sequences are as long as before, except those that cannot be cut (`info.can_truncate` False), which
    are empty now: ask `length`.
    """

    OK = "ok"
    NO_SPACE = "no_space"
    ABORTED = "aborted"


class KvMode(Enum):
    """What of this model's state can be stored and restored.

    SEGMENTS: the cells of any token range; a chain of them restores any prefix, cut at any token. SNAPSHOTS: only the
    state at one exact end: cells, where the model has any, chain up to `start`, and one SNAPSHOT piece makes it
    usable at `end`. UNCACHED: nothing; `SelfCheck.reason` says why.
    """

    SEGMENTS = "segments"
    SNAPSHOTS = "snapshots"
    UNCACHED = "uncached"


class PieceKind(Enum):
    """CELLS: the attention KV of `[start, end)`. SNAPSHOT: that, plus the recurrent state at exactly `end`."""

    CELLS = "cells"
    SNAPSHOT = "snapshot"


class LoraHandle(int):
    """An adapter loaded into a backend; valid until freed."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model file says. Text fields are empty and counts 0 where it does not say.

    Attributes:
        description: llama.cpp's one-line description, e.g. `llama 135M Q4_1`.
        num_params, size_bytes: parameters, and bytes of the tensors.
        n_ctx_train, n_vocab, n_layer, n_embd: the usual dimensions.
        n_swa: width of the sliding window in tokens; 0 is full attention.
        eog_ids: every token that ends a generation.
        add_bos: whether tokenising with `add_special` prepends BOS.
        pooling: `none`, `mean`, `cls`, `last` or `rank`.
        is_embedding_model: made for embeddings; it cannot generate.
        build: name and revision of the library that computes, part of the KV's identity.
        can_truncate: whether a sequence can be cut at any token (false for recurrent and hybrid models).
        has_cells: whether it has attention KV (false for purely recurrent models).
        has_recurrent: whether it has recurrent state.
    """

    backend: str
    architecture: str
    description: str
    quantization: str
    num_params: int
    size_bytes: int
    n_ctx_train: int
    n_vocab: int
    n_layer: int
    n_embd: int
    n_swa: int
    bos_id: int | None
    eos_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool
    bos_text: str
    eos_text: str
    chat_template: str | None
    pooling: str
    is_embedding_model: bool
    has_encoder: bool
    build: str
    system: str
    can_truncate: bool
    has_cells: bool
    has_recurrent: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """The dimensions of the context, as made.

    Attributes:
        n_ctx: tokens one sequence may have.
        num_cells: KV cells all sequences share.
        num_slots: requests meant to run at once (`n_seq_max` of the configuration).
        num_seqs: sequence ids a caller may use, `[0, num_seqs)`.
        max_rows: rows of one decode.
        max_outputs: rows of one decode that may want logits.
        max_embed_tokens: tokens one batch of `embed`, and so one text of it, may have.
    """

    n_ctx: int
    num_cells: int
    num_slots: int
    num_seqs: int
    max_rows: int
    max_outputs: int
    max_embed_tokens: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one decode, as parallel arrays.

    Rows of one sequence are neighbours and in order, and continue it: the first position is its length.

    Attributes:
        tokens, positions, seqs: int32, shape (n,), 1 <= n <= `limits.max_rows`.
        outputs: bool, shape (n,): which rows need logits; at most `limits.max_outputs`.
    """

    tokens: TokenIds
    positions: NDArray[np.int32]
    seqs: NDArray[np.int32]
    outputs: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """Verdict of `Backend.self_check`; `reason` is for people, and says why where the mode is UNCACHED."""

    mode: KvMode
    reason: str
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes held now: weights, and context (KV and compute buffers), per kind of memory."""

    host_model_bytes: int = 0
    host_context_bytes: int = 0
    device_model_bytes: int = 0
    device_context_bytes: int = 0
