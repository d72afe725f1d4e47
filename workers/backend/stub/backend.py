"""`StubBackend`: the backend protocol over a hash chain. See the package's docstring."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erllama_host.config.model import ModelConfig
from erllama_host.errors import InvalidRequest, NotSupported
from erllama_host.kv.keys import ContextShape
from erllama_host.protocol.inference import SamplingParams
from workers.backend.base import Progress
from workers.backend.checks import check_bias, check_embed_texts, check_piece, check_rows
from workers.backend.constraint import Constraints
from workers.backend.limits import resolve_limits
from workers.backend.self_check import run_self_check
from workers.backend.stub.brain import Brain, Digest
from workers.backend.stub.memory import CELL, StubMemory
from workers.backend.stub.mishaps import Mishaps
from workers.backend.stub.sampling import StubSampler
from workers.backend.stub.vocabulary import (
    BOS,
    CHAT_TEMPLATE,
    EOG_IDS,
    EOS,
    SPECIAL_IDS,
    VOCAB_SIZE,
    StubVocabulary,
)
from workers.backend.values import (
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
)

N_CTX_TRAIN = 32768
N_EMBD = 32


def open_stub(config: ModelConfig, on_progress: Progress) -> "StubBackend":
    """A stub that behaves as `config.stub` says.

    Raises:
        ModelLoadFailed: on request, or for an impossible `n_seq_max`.
    """
    mishaps = Mishaps(config.stub)
    mishaps.load(on_progress)
    backend = StubBackend(config, mishaps)
    on_progress(1.0, "context")
    return backend


class StubBackend:
    """See `Backend`."""

    def __init__(self, config: ModelConfig, mishaps: Mishaps) -> None:
        stub = config.stub
        self.vocabulary = StubVocabulary()
        self.info = _facts(stub.kind)
        self.limits: ContextLimits = resolve_limits(
            config,
            n_ctx_train=N_CTX_TRAIN,
            has_recurrent=self.info.has_recurrent,
            seqs_per_id=1,
            num_inner_seqs=0,
        )
        self.kv_shape = _kv_shape(config)
        script = self.vocabulary.tokenize(stub.emit, parse_special=True) if stub.emit else []
        self._brain = Brain(stub.salt, script)
        self._constraints = Constraints(self.vocabulary.make_table, _refuse_schema)
        self._mishaps = mishaps
        self._cacheable = stub.kind != "uncached"
        self._mode = KvMode.UNCACHED
        self._memory: StubMemory | None = None
        self._outputs: dict[int, Digest] = {}
        self._adapters: dict[LoraHandle, bytes] = {}
        self._adapter_salt = 0
        self.ensure_context()

    # --- computing ---------------------------------------------------------------------------------------------------

    def decode(self, rows: Rows) -> DecodeStatus:
        memory = self._context()
        runs = check_rows(rows, self.limits, VOCAB_SIZE, memory.length)
        for seq, _ in runs:
            assert memory.is_usable(seq), f"sequence {seq} has cells but lacks its snapshot"
        self._outputs = {}
        self._mishaps.before_decode(self._spelled(rows.tokens.tolist()))
        if not memory.fits(len(rows)):
            return DecodeStatus.NO_SPACE
        if not self._mishaps.compute(len(rows), int(np.count_nonzero(rows.outputs))):
            if not self.info.can_truncate:
                for seq, _ in runs:
                    memory.clear(seq)
            return DecodeStatus.ABORTED
        first = 0
        for seq, before in runs:
            last = first + int(np.count_nonzero(rows.seqs == seq))
            self._decode_run(memory, seq, before, rows, first, last)
            first = last
        return DecodeStatus.OK

    def _decode_run(self, memory: StubMemory, seq: int, before: int, rows: Rows, first: int, last: int) -> None:
        digest = memory.digest(seq)
        hashes, after = [], []
        for token in rows.tokens[first:last].tolist():
            hashed, digest = self._brain.step(digest, token, self._adapter_salt)
            hashes.append(hashed)
            after.append(digest)
        stored = memory.append(seq, hashes, after)
        assert stored and memory.length(seq) == before + last - first
        for row in (first + np.flatnonzero(rows.outputs[first:last])).tolist():
            self._outputs[row] = after[row - first]

    def logits(self, row: int) -> Logits:
        assert row in self._outputs, f"row {row} of the last decode has no logits"
        return self._brain.logits(self._outputs[row])

    def check_sampling(self, params: SamplingParams) -> None:
        check_bias(params.logit_bias, VOCAB_SIZE)
        self._constraints.check(params)

    def make_sampler(self, params: SamplingParams, seed: int) -> StubSampler:
        return StubSampler(params, seed, self._constraints.make(params), self.logits, self._mishaps.count_sample)

    def abort(self) -> None:
        self._mishaps.abort()

    def clear_abort(self) -> None:
        self._mishaps.clear_abort()

    # --- sequences ---------------------------------------------------------------------------------------------------

    def length(self, seq: int) -> int:
        return self._memory.length(seq) if self._memory is not None else 0

    def share(self, src: int, dst: int, end: int) -> bool:
        memory = self._context()
        assert src != dst and 0 < end <= memory.length(src) and not memory.length(dst)
        return memory.is_usable(src) and memory.share(src, dst, end)

    def truncate(self, seq: int, end: int) -> bool:
        assert 0 <= end <= self.length(seq)
        return self._memory is None or self._memory.truncate(seq, end)

    def clear(self, seq: int) -> None:
        if self._memory is not None:
            self._memory.clear(seq)

    def retain(self, seq: int) -> None:
        """Nothing to do: no decode of the stub takes another sequence's cells."""

    # --- stored state ------------------------------------------------------------------------------------------------

    def self_check(self) -> SelfCheck:
        if not self._cacheable:
            return SelfCheck(KvMode.UNCACHED, "this stub was told to be uncached", 0.0)
        return run_self_check(self)

    def assume(self, mode: KvMode) -> None:
        self._mode = mode

    @property
    def kv_mode(self) -> KvMode:
        return self._mode

    def cuttable(self, start: int, end: int, kind: PieceKind) -> bool:
        return self.info.can_truncate

    def piece_size(self, seq: int, start: int, end: int, kind: PieceKind) -> int:
        check_piece(start, end, kind, self.info)
        return self._memory.piece_size(seq, start, end, kind) if self._memory is not None else 0

    def pack(self, seq: int, start: int, end: int, kind: PieceKind, address: int, capacity: int) -> int:
        check_piece(start, end, kind, self.info)
        return self._memory.pack(seq, start, end, kind, address, capacity) if self._memory is not None else 0

    def restore(self, seq: int, start: int, end: int, kind: PieceKind, address: int, size: int, use_end: int) -> bool:
        memory = self._context()
        check_piece(start, end, kind, self.info)
        assert memory.length(seq) == start, f"piece starts at {start}, sequence {seq} has {memory.length(seq)} tokens"
        assert start < use_end <= end and (use_end == end or self.cuttable(start, end, kind))
        return memory.restore(seq, start, end, kind, address, size) and (
            use_end == end or memory.truncate(seq, use_end)
        )

    # --- memory ------------------------------------------------------------------------------------------------------

    def drop_context(self) -> None:
        self._memory = None
        self._outputs = {}

    def ensure_context(self) -> None:
        self._context()

    @property
    def has_context(self) -> bool:
        return self._memory is not None

    def footprint(self) -> Footprint:
        return Footprint(host_context_bytes=self.limits.num_cells * CELL.itemsize if self._memory is not None else 0)

    def _context(self) -> StubMemory:
        if self._memory is None:
            self._memory = StubMemory(
                self.limits.num_cells,
                self.limits.num_seqs,
                has_cells=self.info.has_cells,
                has_recurrent=self.info.has_recurrent,
            )
        return self._memory

    # --- adapters ----------------------------------------------------------------------------------------------------

    def load_adapter(self, path: str) -> LoraHandle:
        """Any GGUF is an adapter to the stub: its bytes are the salt.

        Raises:
            InvalidRequest: missing, unreadable or no GGUF.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InvalidRequest(f"cannot read adapter {path}: {error.strerror}", field="path") from error
        if not content.startswith(b"GGUF"):
            raise InvalidRequest(f"adapter {path} is not a GGUF file", field="path")
        handle = LoraHandle(max(self._adapters, default=0) + 1)
        self._adapters[handle] = hashlib.sha256(content).digest()
        return handle

    def free_adapter(self, handle: LoraHandle) -> None:
        del self._adapters[handle]

    def attach(self, adapters: Sequence[tuple[LoraHandle, float]]) -> None:
        parts = sorted(self._adapters[handle] + repr(float(scale)).encode() for handle, scale in adapters if scale)
        digest = hashlib.sha256(b"".join(parts)).digest()
        self._adapter_salt = int.from_bytes(digest[:8], "little") if parts else 0

    # --- embeddings --------------------------------------------------------------------------------------------------

    def embed(self, texts: Sequence[Sequence[int]], *, normalize: bool) -> list[NDArray[np.float32]]:
        check_embed_texts(texts, self.limits, VOCAB_SIZE)
        self._mishaps.before_decode(b" ".join(self._spelled(text) for text in texts))
        vectors = []
        for ids in texts:
            digest = Digest()
            for token in ids:
                _, digest = self._brain.step(digest, token, self._adapter_salt)
            vector = np.random.Generator(np.random.PCG64(digest.total)).standard_normal(N_EMBD, np.float32)
            vectors.append(vector / np.linalg.norm(vector) if normalize else vector)
        return vectors

    def close(self) -> None:
        self.drop_context()

    def _spelled(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self.vocabulary.special_piece, tokens))


def _refuse_schema(_text: str) -> str:
    """The converter comes with llama-cpp-python, which the stub does without."""
    raise NotSupported("the stub backend takes a grammar, but no json_schema", field="json_schema")


def _kv_shape(config: ModelConfig) -> ContextShape:
    """The stub's salt and kind take the place of the library: other answers must never meet in the cache."""
    return ContextShape(
        type_k=config.type_k,
        type_v=config.type_v,
        kv_rotation=False,
        flash_attn=config.flash_attn,
        rope_scaling="none",
        rope_freq_base=config.rope_freq_base or 0.0,
        rope_freq_scale=config.rope_freq_scale or 0.0,
        rope_factors="none",
        yarn_ext_factor=0.0,
        yarn_attn_factor=0.0,
        yarn_beta_fast=0.0,
        yarn_beta_slow=0.0,
        yarn_orig_ctx=0,
        swa_mode="none",
        llama_build=f"stub 1 {config.stub.kind} {config.stub.salt} {config.stub.emit}",
    )


def _facts(kind: str) -> ModelFacts:
    has_recurrent = kind in ("recurrent", "hybrid")
    return ModelFacts(
        backend="stub",
        architecture=f"stub-{kind}",
        description="deterministic stub",
        quantization="none",
        num_params=0,
        size_bytes=0,
        n_ctx_train=N_CTX_TRAIN,
        n_vocab=VOCAB_SIZE,
        n_layer=0,
        n_embd=N_EMBD,
        n_swa=0,
        bos_id=None,
        eos_id=SPECIAL_IDS[EOS],
        eog_ids=EOG_IDS,
        add_bos=False,
        bos_text=BOS,
        eos_text=EOS,
        chat_template=CHAT_TEMPLATE,
        pooling="mean",
        is_embedding_model=False,
        has_encoder=False,
        build="stub 1",
        system="",
        can_truncate=not has_recurrent,
        has_cells=kind != "recurrent",
        has_recurrent=has_recurrent,
    )
