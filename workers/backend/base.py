"""The seam between the worker and what computes tokens: the `Backend` protocol and its value types.

Two implementations stand behind it, `llama/` (llama.cpp through ctypes) and `stub/` (deterministic, no GGUF), held to
one contract suite, `tests/contracts/test_backend_contract.py`.

Threads. A backend is opened, used and closed by one thread, the engine. These may be called from any thread: every
method of `Backend.vocabulary`, `Backend.abort`, `Backend.check_sampling`, and reading `Backend.info`,
`Backend.limits` and `Backend.kv_shape`, which never change.

Sequences. Ids are `[0, limits.num_seqs)`. A sequence is the KV of tokens `[0, length)`, always gapless from position 0;
`length` 0 is an empty sequence. There are more ids than requests run at once (`limits.num_slots`), so that finished
sequences can stay as live cache. Whatever further ids an implementation needs inside are not visible here.

Values and errors. What a caller must expect (no free cells, a piece that does not fit, a sequence that cannot be cut)
is a return value. A broken rule of this protocol is an `AssertionError`: it is raised before anything reaches the
native library, which would abort the process or, worse, go on with wrong state. `BackendFault` means the native
library itself failed: the context is not to be trusted any more and the worker must end.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from erllama_host.kv.keys import ContextShape
from erllama_host.protocol.inference import SamplingParams
from workers.backend.values import (
    BackendFault,
    ContextLimits,
    DecodeStatus,
    Footprint,
    KvMode,
    Logits,
    LoraHandle,
    ModelFacts,
    PieceKind,
    Rows,
    SelfCheck,
    TokenIds,
)

__all__ = [
    "Backend",
    "BackendFault",
    "ContextLimits",
    "DecodeStatus",
    "Footprint",
    "KvMode",
    "Logits",
    "LoraHandle",
    "ModelFacts",
    "PieceKind",
    "Progress",
    "Rows",
    "Sampler",
    "SelfCheck",
    "TokenIds",
    "Vocabulary",
]

Progress = Callable[[float, str], None]
"""Called while loading with a fraction in [0, 1] and a phase: `weights`, `context`, `self_check`, `ready`."""


class Vocabulary(Protocol):
    """Tokens and text. Every method may be called from any thread, also while the engine decodes."""

    @property
    def size(self) -> int:
        """Number of tokens; ids are `[0, size)`."""
        ...

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            add_special: add what the model wants around a text (BOS, ...), as its file says.
            parse_special: read `<|im_end|>` and the like in `text` as special tokens instead of plain text.
        """
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids`, with special tokens left out and bytes that are not UTF-8 replaced.

        Raises:
            InvalidRequest: an id is out of range.
        """
        ...

    def piece(self, token: int) -> bytes:
        """The bytes one token adds to an answer, maybe part of a UTF-8 character; b"" for control tokens."""
        ...

    def special_piece(self, token: int) -> bytes:
        """The bytes of one token with control tokens spelled out, e.g. b"<|im_end|>": for finding markers."""
        ...

    def is_eog(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        ...

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise InvalidRequest, naming `tokens`, unless every id is in range."""
        ...


class Sampler(Protocol):
    """One request's choice of tokens: a chain of samplers, its random state and its grammar. Engine thread only."""

    def prime(self, ids: Sequence[int]) -> None:
        """Let penalties count tokens that were not sampled here: the prompt, and on a resumed stream its answer so far.

        The grammar does not see them; use `replay` for answer tokens under a grammar.
        """
        ...

    def replay(self, ids: Sequence[int]) -> None:
        """Take tokens of the answer as if `sample` had returned them: penalties, grammar and one random draw each."""
        ...

    def sample(self, row: int) -> int:
        """Choose and accept the next token from row `row` of the last decode, which must have had `outputs[row]`."""
        ...

    def sample_from(self, logits: Logits) -> int:
        """The same from one row of logits, shape (n_vocab,), e.g. a stored one. It is not changed."""
        ...

    def close(self) -> None:
        """Free it. Idempotent."""
        ...


class Backend(Protocol):
    """A loaded model with one context. Engine thread only, except as the module says."""

    @property
    def info(self) -> ModelFacts: ...

    @property
    def limits(self) -> ContextLimits: ...

    @property
    def kv_shape(self) -> ContextShape:
        """What changes the KV's bytes or their meaning, besides model, adapters and tokens: input of
        `ctx_params_hash`.
        """
        ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    # --- computing ---------------------------------------------------------------------------------------------------

    def decode(self, rows: Rows) -> DecodeStatus:
        """Compute `rows`; afterwards logits of its output rows are readable until the next call of `decode`.

        Makes the context again if it was dropped. Does not return before the computation ends, fails or is aborted;
        the GIL is free meanwhile.
        """
        ...

    def logits(self, row: int) -> Logits:
        """Logits of output row `row` of the last decode, shape (n_vocab,): a view, valid until the next `decode`."""
        ...

    def check_sampling(self, params: SamplingParams) -> None:
        """Do ahead what `make_sampler` would check, and remember the outcome. From any thread.

        A grammar or schema that has not been seen costs milliseconds, at worst half a second: better here than in a
        tick.

        Raises:
            InvalidRequest: as `make_sampler`.
        """
        ...

    def make_sampler(self, params: SamplingParams, seed: int) -> Sampler:
        """A sampler of its own state; `seed` is used where `params.seed` is None.

        Raises:
            InvalidRequest: grammar, json_schema or logit_bias cannot be used; names the field.
        """
        ...

    def abort(self) -> None:
        """Stop the decode that is running, or else the next one, as soon as possible. From any thread; idempotent."""
        ...

    def clear_abort(self) -> None:
        """Forget an `abort` that has not stopped a decode yet."""
        ...

    # --- sequences ---------------------------------------------------------------------------------------------------

    def length(self, seq: int) -> int:
        """Number of tokens of `seq`, as the library itself counts them."""
        ...

    def share(self, src: int, dst: int, end: int) -> bool:
        """Make the empty `dst` the first `end` tokens of `src`, without copying: cells are shared.

        Returns:
            False, and `dst` stays empty, where that is impossible: a model that cannot be cut at `end`, or a window
            whose cells are gone.
        """
        ...

    def truncate(self, seq: int, end: int) -> bool:
        """Cut `seq` to its first `end` tokens, 0 <= end <= length. False, and nothing changed, where that is
        impossible.
        """
        ...

    def clear(self, seq: int) -> None:
        """Make `seq` empty."""
        ...

    def retain(self, seq: int) -> None:
        """Announce that `seq` will rest: others' decoding must not take its cells (a sliding window would)."""
        ...

    # --- stored state ------------------------------------------------------------------------------------------------

    def self_check(self) -> SelfCheck:
        """Prove on this context that stored state restores exactly; needs every sequence empty, and leaves them so."""
        ...

    def assume(self, mode: KvMode) -> None:
        """Set the mode that an earlier self-check of the same model and context found."""
        ...

    @property
    def kv_mode(self) -> KvMode:
        """UNCACHED until `self_check` or `assume`."""
        ...

    def cuttable(self, start: int, end: int, kind: PieceKind) -> bool:
        """Whether such a piece may be restored with `use_end < end`.

        True for cells of full attention; for a sliding window only where the piece is no longer than it; else False.
        """
        ...

    def piece_size(self, seq: int, start: int, end: int, kind: PieceKind) -> int:
        """Bytes `pack` will write; 0 where the range cannot be packed (cells gone, or a snapshot not at the sequence's
        end).
        """
        ...

    def pack(self, seq: int, start: int, end: int, kind: PieceKind, address: int, capacity: int) -> int:
        """Write the state of tokens `[start, end)` of `seq` to memory at `address`; `seq` is unchanged.

        A SNAPSHOT needs `end == length(seq)`.
        Returns:
            Bytes written; 0 where it cannot be packed completely or does not fit into `capacity`: store nothing then.
        """
        ...

    def restore(self, seq: int, start: int, end: int, kind: PieceKind, address: int, size: int, use_end: int) -> bool:
        """Append the piece of tokens `[start, end)` to `seq`, which has `start` tokens, and keep `[0, use_end)`.

        `start < use_end <= end`, and `use_end == end` unless the piece is `cuttable`. Without `info.can_truncate`,
        CELLS are not usable alone: a SNAPSHOT must follow (it may start at 0, or where the CELLS end) before the
        sequence is decoded, shared or packed; `length` counts the cells meanwhile.

        Returns:
            False where the bytes are no such piece, or no cells are free; `seq` then still has `start` tokens, or is
            empty where it cannot be cut: ask `length`.
        """
        ...

    # --- memory ------------------------------------------------------------------------------------------------------

    def drop_context(self) -> None:
        """Free the context, all sequences with it; vocabulary, samplers and adapters stay. Idempotent."""
        ...

    def ensure_context(self) -> None:
        """Make the context again after `drop_context`. Idempotent.

        Raises:
            BackendFault: it cannot be made, for want of memory.
        """
        ...

    @property
    def has_context(self) -> bool: ...

    def footprint(self) -> Footprint: ...

    # --- adapters ----------------------------------------------------------------------------------------------------

    def load_adapter(self, path: str) -> LoraHandle:
        """Load a LoRA GGUF.

        Raises:
            InvalidRequest: the file is missing, no adapter, or not one for this model; the message has the library's
            reason.
        """
        ...

    def free_adapter(self, handle: LoraHandle) -> None:
        """Free it. It must not be in the attached set."""
        ...

    def attach(self, adapters: Sequence[tuple[LoraHandle, float]]) -> None:
        """Compute with exactly these adapters and scales from now on; empty for none. Costs nothing if unchanged."""
        ...

    # --- embeddings --------------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[Sequence[int]], *, normalize: bool) -> list[NDArray[np.float32]]:
        """One pooled vector, shape (n_embd,), per text; split over as few computations as `max_embed_tokens` allows.

        Args:
            texts: token ids, each 1 to `limits.max_embed_tokens` long.
            normalize: scale to Euclidean length 1.

        Raises:
            InvalidRequest: a text is empty or too long.
            NotSupported: the model has no pooled embeddings.
            NoMemory: what computes them has no room beside what generates.
        """
        ...

    def close(self) -> None:
        """Free everything. Idempotent; nothing but `close` may be called afterwards."""
        ...
