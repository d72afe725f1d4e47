"""What a loaded model says about itself, as `ModelFacts` and as the KV's shape."""

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

from erllama_host.config.model import ModelConfig
from erllama_host.kv.keys import ContextShape
from workers.backend.llama.library import build_name, lib, system_name
from workers.backend.llama.vocabulary import LlamaVocabulary
from workers.backend.values import ContextLimits, ModelFacts

POOLING_NAMES = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_MAX_METADATA_CHARS = 4096
_K_QUANT = re.compile(r"(?P<base>I?Q\d\w*)(?: - (?P<size>Small|Medium|Large))?")


def read_metadata(model: Any) -> dict[str, str]:
    """The GGUF's scalar metadata, values cut at 4 096 characters (the chat template has a call of its own)."""
    metadata = {}
    for index in range(lib.llama_model_meta_count(model)):
        key = _text(lib.llama_model_meta_key_by_index, model, index, room=256)
        metadata[key] = _text(lib.llama_model_meta_val_str_by_index, model, index, room=_MAX_METADATA_CHARS)
    return metadata


def read_facts(model: Any, vocabulary: LlamaVocabulary, metadata: Mapping[str, str], config: ModelConfig) -> ModelFacts:
    """Everything `ModelFacts` holds."""
    architecture = metadata.get("general.architecture", "")
    is_recurrent = bool(lib.llama_model_is_recurrent(model))
    is_hybrid = bool(lib.llama_model_is_hybrid(model))
    bos, eos = lib.llama_vocab_bos(vocabulary.native), lib.llama_vocab_eos(vocabulary.native)
    template = lib.llama_model_chat_template(model, None)
    causal = metadata.get(f"{architecture}.attention.causal", "true") != "false"
    return ModelFacts(
        backend="llama",
        architecture=architecture,
        description=_text(lib.llama_model_desc, model, room=128),
        quantization=quantization_name(lib.llama_ftype_name(lib.llama_model_ftype(model))),
        num_params=int(lib.llama_model_n_params(model)),
        size_bytes=int(lib.llama_model_size(model)),
        n_ctx_train=int(lib.llama_model_n_ctx_train(model)),
        n_vocab=vocabulary.size,
        n_layer=int(lib.llama_model_n_layer(model)),
        n_embd=int(lib.llama_model_n_embd_out(model)),
        n_swa=int(lib.llama_model_n_swa(model)),
        bos_id=bos if bos >= 0 else None,
        eos_id=eos if eos >= 0 else None,
        eog_ids=vocabulary.eog_ids,
        add_bos=vocabulary.has_text and bool(lib.llama_vocab_get_add_bos(vocabulary.native)),
        bos_text=vocabulary.text_of(bos),
        eos_text=vocabulary.text_of(eos),
        chat_template=template.decode(errors="replace") if template else None,
        pooling=config.pooling or POOLING_NAMES.get(int(metadata.get(f"{architecture}.pooling_type", -1)), ""),
        is_embedding_model=config.embeddings is True or not causal or not lib.llama_model_has_decoder(model),
        has_encoder=bool(lib.llama_model_has_encoder(model)),
        build=build_name(),
        system=system_name(),
        can_truncate=not is_recurrent and not is_hybrid,
        has_cells=not is_recurrent,
        has_recurrent=is_recurrent or is_hybrid,
        metadata=metadata,
    )


def quantization_name(native: bytes | None) -> str:
    """`Q4_K - Medium` → `Q4_K_M`, `all F32` → `F32`, `Q4_1` → `Q4_1`; a guess's mark is dropped."""
    text = (native or b"").decode(errors="replace").replace("(guessed)", "").strip()
    match = _K_QUANT.match(text)
    if match is None:
        return text.removeprefix("all ").upper() or "unknown"
    size = match["size"]
    return match["base"] + (f"_{size[0]}" if size else "")


def read_kv_shape(facts: ModelFacts, limits: ContextLimits, config: ModelConfig, log: Sequence[str]) -> ContextShape:
    """The identity of the KV; `log` is what llama.cpp said while it made the context."""

    def setting(option: float | None, key: str) -> float:
        return float(option if option is not None else facts.metadata.get(f"{facts.architecture}.rope.{key}", 0.0))

    return ContextShape(
        type_k=config.type_k,
        type_v=config.type_v,
        # The choice is llama.cpp's own (by type, head size and environment); only its log tells.
        kv_rotation=any(re.search(r"attn_rot_[kv] = 1", line) for line in log),
        flash_attn=config.flash_attn,
        rope_scaling=config.rope_scaling_type or facts.metadata.get(f"{facts.architecture}.rope.scaling.type", "none"),
        rope_freq_base=setting(config.rope_freq_base, "freq_base"),
        rope_freq_scale=setting(config.rope_freq_scale, "scaling.factor"),
        rope_factors=_rope_factors(facts, limits),
        yarn_ext_factor=config.yarn_ext_factor if config.yarn_ext_factor is not None else -1.0,
        yarn_attn_factor=config.yarn_attn_factor if config.yarn_attn_factor is not None else -1.0,
        yarn_beta_fast=config.yarn_beta_fast if config.yarn_beta_fast is not None else -1.0,
        yarn_beta_slow=config.yarn_beta_slow if config.yarn_beta_slow is not None else -1.0,
        yarn_orig_ctx=config.yarn_orig_ctx or 0,
        swa_mode=("full" if config.swa_full else "window") if facts.n_swa else "none",
        llama_build=facts.build,
    )


def _rope_factors(facts: ModelFacts, limits: ContextLimits) -> str:
    """llama.cpp takes the long factors when the context (all cells, in a unified cache) exceeds the original length."""
    original = facts.metadata.get(f"{facts.architecture}.rope.scaling.original_context_length")
    if original is None:
        return "none"
    return "long" if limits.num_cells > int(original) else "short"


def _text(function: Any, model: Any, *args: int, room: int) -> str:
    buffer = ctypes.create_string_buffer(room)
    function(model, *args, buffer, room)
    return buffer.value.decode(errors="replace")
