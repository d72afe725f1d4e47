"""`LlamaBackend`: the backend protocol over llama.cpp. It composes the package's parts and owns them all.

Everything here but `vocabulary` and `abort` belongs to the engine thread; llama.cpp's context is not thread-safe.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ModelLoadFailed, NoMemory, NotSupported
from erllama_host.kv.keys import ContextShape
from erllama_host.protocol.inference import SamplingParams
from workers.backend.base import Progress
from workers.backend.checks import check_bias, check_embed_texts, check_piece, check_rows
from workers.backend.constraint import Constraints
from workers.backend.limits import resolve_limits
from workers.backend.llama.adapters import Adapters, AdapterSet, normalized
from workers.backend.llama.context import Context
from workers.backend.llama.embedding import MAX_TEXTS, Embedder
from workers.backend.llama.facts import read_facts, read_kv_shape, read_metadata
from workers.backend.llama.footprint import FootprintLog, bytes_per_cell
from workers.backend.llama.json_schema import schema_to_gbnf
from workers.backend.llama.library import AbortFlag, lib
from workers.backend.llama.loading import check_memory, context_params, embedding_params, load_model, make_context
from workers.backend.llama.pieces import Pieces
from workers.backend.llama.sampling import LlamaSampler, make_chain
from workers.backend.llama.sequences import SeqPlan, Sequences
from workers.backend.llama.vocabulary import LlamaVocabulary
from workers.backend.self_check import run_self_check
from workers.backend.values import (
    BackendFault,
    DecodeStatus,
    Footprint,
    KvMode,
    Logits,
    LoraHandle,
    PieceKind,
    Rows,
    SelfCheck,
)

_NUM_INNER_SEQS = 2


def open_llama(config: ModelConfig, on_progress: Progress) -> "LlamaBackend":
    """Load the GGUF of `config.path` and make its context.

    Raises:
        ModelLoadFailed: with llama.cpp's own reason, or naming the option that cannot be met.
    """
    model, lines = load_model(config, on_progress)
    try:
        on_progress(1.0, "context")
        return LlamaBackend(model, config, lines)
    except BaseException:
        lib.llama_model_free(model)
        raise


class LlamaBackend:
    """See `Backend`."""

    def __init__(self, model: Any, config: ModelConfig, load_log: Sequence[str]) -> None:
        """Takes `model` over once it returns; `load_log` is what llama.cpp said while loading it.

        Raises:
            ModelLoadFailed: the context cannot be made; names the likely option.
        """
        self._model = model
        self._config = config
        self.vocabulary = LlamaVocabulary(model)
        self.info = read_facts(model, self.vocabulary, read_metadata(model), config)
        second_owners = self.info.n_swa > 0 and config.swa_full
        self.limits = resolve_limits(
            config,
            n_ctx_train=self.info.n_ctx_train,
            has_recurrent=self.info.has_recurrent,
            seqs_per_id=2 if second_owners else 1,
            num_inner_seqs=_NUM_INNER_SEQS,
        )
        self._plan = SeqPlan(self.limits.num_seqs, second_owners)
        self._abort = AbortFlag()
        self._constraints = Constraints(self.vocabulary.make_table, schema_to_gbnf)
        self._adapters = Adapters(model)
        self._attached: AdapterSet = ()
        self._mode = KvMode.UNCACHED
        self._footprint = FootprintLog(load_log)
        self._context: Context | None = None
        self._sequences: Sequences
        self._pieces: Pieces
        self._embedder: Embedder | None = None
        self._embedder_adapters: AdapterSet = ()
        check_memory(config, self.limits, bytes_per_cell(model, self.info, config))
        log = self._make_first_context()
        self.kv_shape: ContextShape = read_kv_shape(self.info, self.limits, config, log)

    def _make_first_context(self) -> list[str]:
        if self.info.is_embedding_model:
            return []
        try:
            return self._make_context()
        except BackendFault as error:
            options = ", ".join(
                f"{name}={getattr(self._config, name)}"
                for name in ("n_ctx", "n_cells", "n_seq_max", "type_k", "type_v")
            )
            raise ModelLoadFailed(f"cannot make a context ({options}): {error}", option="n_ctx") from error

    # --- computing ---------------------------------------------------------------------------------------------------

    def decode(self, rows: Rows) -> DecodeStatus:
        context = self._ready_context()
        sequences = self._sequences
        runs = check_rows(rows, self.limits, self.info.n_vocab, sequences.length)
        for seq, _ in runs:
            assert sequences.is_usable(seq), f"sequence {seq} has cells but lacks its snapshot"
            sequences.release(seq)
        status = context.decode(rows)
        if status is DecodeStatus.ABORTED:
            self._roll_back(runs)
        return status

    def _roll_back(self, runs: list[tuple[int, int]]) -> None:
        """Undo the part of a decode that was done before the abort; what cannot be cut is corrupt and goes whole."""
        for seq, before in runs:
            if before and self.info.can_truncate:
                self._sequences.cut(seq, before)
            else:
                self._sequences.clear(seq)

    def logits(self, row: int) -> Logits:
        return self._ready_context().logits(row)

    def check_sampling(self, params: SamplingParams) -> None:
        check_bias(params.logit_bias, self.info.n_vocab)
        self._constraints.check(params)

    def make_sampler(self, params: SamplingParams, seed: int) -> LlamaSampler:
        constraint = self._constraints.make(params)
        chain = make_chain(params, seed, self.info.n_vocab, self.limits.n_ctx)
        return LlamaSampler(chain, constraint, params, self._ready_context, self.info.n_vocab)

    def abort(self) -> None:
        self._abort.set()

    def clear_abort(self) -> None:
        self._abort.clear()

    # --- sequences ---------------------------------------------------------------------------------------------------

    def length(self, seq: int) -> int:
        return self._sequences.length(seq) if self._context is not None else 0

    def share(self, src: int, dst: int, end: int) -> bool:
        assert src != dst and 0 < end <= self.length(src) and not self.length(dst)
        return self._sequences.share(src, dst, end)

    def truncate(self, seq: int, end: int) -> bool:
        assert 0 <= end <= self.length(seq)
        return self._context is None or self._sequences.truncate(seq, end)

    def clear(self, seq: int) -> None:
        if self._context is not None:
            self._sequences.clear(seq)

    def retain(self, seq: int) -> None:
        if self._context is not None:
            self._sequences.retain(seq)

    # --- stored state ------------------------------------------------------------------------------------------------

    def self_check(self) -> SelfCheck:
        if self.info.is_embedding_model:
            return SelfCheck(KvMode.UNCACHED, "an embedding model keeps no KV", 0.0)
        if not self._config.flash_attn and self.info.has_cells:
            return SelfCheck(KvMode.UNCACHED, "flash_attn is off: V is stored transposed and cannot be cut", 0.0)
        return run_self_check(self)

    def assume(self, mode: KvMode) -> None:
        self._mode = mode

    @property
    def kv_mode(self) -> KvMode:
        return self._mode

    def cuttable(self, start: int, end: int, kind: PieceKind) -> bool:
        return self.info.can_truncate and (not self.info.n_swa or end - start <= self.info.n_swa)

    def piece_size(self, seq: int, start: int, end: int, kind: PieceKind) -> int:
        check_piece(start, end, kind, self.info)
        return self._pieces.size(seq, start, end, kind) if self._context is not None else 0

    def pack(self, seq: int, start: int, end: int, kind: PieceKind, address: int, capacity: int) -> int:
        check_piece(start, end, kind, self.info)
        return self._pieces.pack(seq, start, end, kind, address, capacity) if self._context is not None else 0

    def restore(self, seq: int, start: int, end: int, kind: PieceKind, address: int, size: int, use_end: int) -> bool:
        check_piece(start, end, kind, self.info)
        assert start < use_end <= end and (use_end == end or self.cuttable(start, end, kind))
        self._ready_context()
        have = self._sequences.length(seq)
        assert have == start, f"piece starts at {start}, sequence {seq} has {have} tokens"
        return self._pieces.restore(seq, start, end, kind, address, size, use_end)

    # --- memory ------------------------------------------------------------------------------------------------------

    def drop_context(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context = None
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None
        self._footprint.forget_contexts()

    def ensure_context(self) -> None:
        # An embedding model makes its one context when it first embeds.
        if not self.info.is_embedding_model:
            self._ready_context()

    @property
    def has_context(self) -> bool:
        return self._context is not None

    def footprint(self) -> Footprint:
        return self._footprint.footprint()

    def _ready_context(self) -> Context:
        if self._context is None:
            assert not self.info.is_embedding_model, "an embedding model cannot generate"
            self._make_context()
        assert self._context is not None
        return self._context

    def _make_context(self) -> list[str]:
        native, log = make_context(self._model, context_params(self._config, self.limits, self._plan.num_native))
        self._footprint.add_context(log)
        self._context = Context(native, self.info.n_vocab, self.limits.max_rows, self._abort)
        memory = self._context.memory
        self._sequences = Sequences(native, memory, self._plan, self.info, swa_full=self._config.swa_full)
        self._pieces = Pieces(native, self._sequences, self.info)
        if self.info.n_swa:
            self._calibrate(self._context)
        if self._attached:
            self._adapters.attach(native, self._attached)
        return log

    def _calibrate(self, context: Context) -> None:
        two = np.arange(2, dtype=np.int32)
        status = context.decode(Rows(two, two, np.zeros(2, np.int32), np.zeros(2, np.bool_)))
        assert status is DecodeStatus.OK, f"first decode: {status}"
        self._sequences.calibrate(0)
        self._sequences.clear(0)

    # --- adapters ----------------------------------------------------------------------------------------------------

    def load_adapter(self, path: str) -> LoraHandle:
        return self._adapters.load(path)

    def free_adapter(self, handle: LoraHandle) -> None:
        assert all(handle != attached for attached, _ in self._attached), "the adapter is attached"
        if any(handle == attached for attached, _ in self._embedder_adapters):
            self._attach_to_embedder(())
        self._adapters.free(handle)

    def attach(self, adapters: Sequence[tuple[LoraHandle, float]]) -> None:
        wanted = normalized(adapters)
        if wanted == self._attached:
            return
        if self._context is not None:
            self._adapters.attach(self._context.native, wanted)
        self._attached = wanted

    # --- embeddings --------------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[Sequence[int]], *, normalize: bool) -> list[NDArray[np.float32]]:
        check_embed_texts(texts, self.limits, self.info.n_vocab)
        embedder = self._ready_embedder()
        if self._embedder_adapters != self._attached:
            self._attach_to_embedder(self._attached)
        return embedder.embed(texts, normalize=normalize)

    def _ready_embedder(self) -> Embedder:
        if self._embedder is None:
            # A model that says nothing is pooled by its mean, the usual choice for models made to generate.
            pooling = self.info.pooling or "mean"
            if pooling not in ("mean", "cls", "last"):
                raise NotSupported(f"this model's pooling is {pooling!r}: it makes no vector per text")
            params = embedding_params(self._config, self.limits, pooling, MAX_TEXTS)
            try:
                native, log = make_context(self._model, params)
            except BackendFault as error:  # what generates is as it was
                raise NoMemory(f"the context that embeds cannot be made: {error}") from error
            self._footprint.add_context(log)
            self._embedder = Embedder(native, self.info.n_embd, self.limits.max_embed_tokens)
            self._embedder_adapters = ()
        return self._embedder

    def _attach_to_embedder(self, adapters: AdapterSet) -> None:
        if self._embedder is not None:
            self._adapters.attach(self._embedder.native, adapters)
        self._embedder_adapters = adapters

    def close(self) -> None:
        if self._model is None:
            return
        self.drop_context()
        self._adapters.close()
        lib.llama_model_free(self._model)
        self._model = None
