"""Tiny GGUFs with random weights, one per kind of model, and ways to break a file.

`tiny(kind)` writes the file once per process and returns its path. All but the embedding model share one vocabulary:
3 special tokens, 256 bytes, the space, chat and marker tokens, so that any text works. Weights come from a fixed
seed: the same file every time.
"""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np

EMBD, HEADS, HEADS_KV, HEAD_DIM, FF = 64, 2, 1, 32, 128
LAYERS = 4
N_CTX_TRAIN = 8192
WINDOW = 64
INNER, STATE, CONV, DT_RANK = 128, 16, 4, 8

CONTROL, USER_DEFINED, NORMAL, UNKNOWN, BYTE = (
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
    gguf.TokenType.NORMAL,
    gguf.TokenType.UNKNOWN,
    gguf.TokenType.BYTE,
)
EXTRA_TOKENS = [
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", CONTROL),
    ("<think>", USER_DEFINED),
    ("</think>", USER_DEFINED),
    ("<tool_call>", USER_DEFINED),
    ("</tool_call>", USER_DEFINED),
]
TOKENS = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
TOKENS += [(f"<0x{value:02X}>", BYTE) for value in range(256)]
TOKENS += [("▁", NORMAL), *EXTRA_TOKENS]
N_VOCAB = len(TOKENS)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny(kind: str) -> Path:
    """Path of the tiny model `kind`: attention, window, mamba, jamba, lfm2, embedding, no_vocab, or lora, lora2."""
    return _write_once(kind)


@functools.cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="ggufs-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@functools.cache
def _write_once(kind: str) -> Path:
    path = _directory() / f"{kind}.gguf"
    _WRITERS[kind](path)
    return path


def scratch_path(name: str) -> Path:
    """A path for one test's own file, removed when the process ends."""
    return Path(tempfile.mkdtemp(dir=_directory())) / name


class _File:
    """A GGUF under construction."""

    def __init__(self, path: Path, arch: str, seed: int) -> None:
        self.writer = gguf.GGUFWriter(str(path), arch)
        self._random = np.random.default_rng(seed)

    def random(self, name: str, *shape: int, scale: float | None = None) -> None:
        scale = 1 / np.sqrt(shape[-1]) if scale is None else scale
        self.tensor(name, self._random.standard_normal(shape) * scale)

    def ones(self, name: str, size: int) -> None:
        self.tensor(name, np.ones(size))

    def tensor(self, name: str, values: np.ndarray) -> None:
        self.writer.add_tensor(name, np.ascontiguousarray(values, np.float32))

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def _start(path: Path, arch: str, seed: int, layers: int, *, vocab: bool = True, tied: bool = False) -> _File:
    file = _File(path, arch, seed)
    writer = file.writer
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(EMBD)
    writer.add_block_count(layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    writer.add_vocab_size(N_VOCAB)
    if vocab:
        _add_vocabulary(writer)
    else:
        writer.add_tokenizer_model("no_vocab")
    # Tied weights would make a model that repeats its last token, were the embedding as large as the layers' output.
    file.random("token_embd.weight", N_VOCAB, EMBD, scale=0.1 if tied else 1.0)
    if not tied:
        file.random("output.weight", N_VOCAB, EMBD)
    return file


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in TOKENS])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([int(kind) for _, kind in TOKENS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _heads(writer: gguf.GGUFWriter, heads_kv: int | list[int] = HEADS_KV) -> None:
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(heads_kv)


def _attention(file: _File, prefix: str, *, qk_norm: bool = False) -> None:
    file.random(prefix + "attn_q.weight", HEADS * HEAD_DIM, EMBD)
    file.random(prefix + "attn_k.weight", HEADS_KV * HEAD_DIM, EMBD)
    file.random(prefix + "attn_v.weight", HEADS_KV * HEAD_DIM, EMBD)
    file.random(prefix + "attn_output.weight", EMBD, HEADS * HEAD_DIM)
    if qk_norm:
        file.ones(prefix + "attn_q_norm.weight", HEAD_DIM)
        file.ones(prefix + "attn_k_norm.weight", HEAD_DIM)


def _feed_forward(file: _File, prefix: str) -> None:
    file.ones(prefix + "ffn_norm.weight", EMBD)
    file.random(prefix + "ffn_gate.weight", FF, EMBD)
    file.random(prefix + "ffn_up.weight", FF, EMBD)
    file.random(prefix + "ffn_down.weight", EMBD, FF)


def write_attention(path: Path, *, vocab: bool = True) -> None:
    """llama architecture: plain attention."""
    file = _start(path, "llama", 1, LAYERS, vocab=vocab)
    _heads(file.writer)
    file.writer.add_rope_dimension_count(HEAD_DIM)
    file.ones("output_norm.weight", EMBD)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        file.ones(prefix + "attn_norm.weight", EMBD)
        _attention(file, prefix)
        _feed_forward(file, prefix)
    file.close()


def write_window(path: Path) -> None:
    """gemma3 architecture: five layers with a window of `WINDOW`, then one with full attention."""
    layers = 6
    file = _start(path, "gemma3", 2, layers, tied=True)
    _heads(file.writer)
    file.writer.add_key_length(HEAD_DIM)
    file.writer.add_value_length(HEAD_DIM)
    file.writer.add_sliding_window(WINDOW)
    file.writer.add_rope_freq_base(1e6)
    file.ones("output_norm.weight", EMBD)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        file.ones(prefix + "attn_norm.weight", EMBD)
        _attention(file, prefix, qk_norm=True)
        file.ones(prefix + "post_attention_norm.weight", EMBD)
        _feed_forward(file, prefix)
        file.ones(prefix + "post_ffw_norm.weight", EMBD)
    file.close()


def _add_ssm(writer: gguf.GGUFWriter) -> None:
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(DT_RANK)


def _mamba_layer(file: _File, prefix: str, *, norms: bool) -> None:
    file.random(prefix + "ssm_in.weight", 2 * INNER, EMBD)
    file.random(prefix + "ssm_conv1d.weight", INNER, CONV)
    file.random(prefix + "ssm_conv1d.bias", INNER, scale=0.1)
    file.random(prefix + "ssm_x.weight", DT_RANK + 2 * STATE, INNER)
    file.random(prefix + "ssm_dt.weight", INNER, DT_RANK)
    # Small time steps, so that the state remembers more than the last token.
    file.tensor(prefix + "ssm_dt.bias", np.linspace(-4.2, -3.8, INNER))
    file.tensor(prefix + "ssm_a", -np.tile(np.arange(1, STATE + 1) * 0.2, (INNER, 1)))
    file.ones(prefix + "ssm_d", INNER)
    file.random(prefix + "ssm_out.weight", EMBD, INNER)
    if norms:
        file.ones(prefix + "ssm_dt_norm.weight", DT_RANK)
        file.ones(prefix + "ssm_b_norm.weight", STATE)
        file.ones(prefix + "ssm_c_norm.weight", STATE)


def write_mamba(path: Path) -> None:
    """Purely recurrent."""
    file = _start(path, "mamba", 3, LAYERS)
    _add_ssm(file.writer)
    file.writer.add_feed_forward_length(0)
    file.writer.add_head_count(0)
    file.ones("output_norm.weight", EMBD)
    for layer in range(LAYERS):
        file.ones(f"blk.{layer}.attn_norm.weight", EMBD)
        _mamba_layer(file, f"blk.{layer}.", norms=False)
    file.close()


def write_jamba(path: Path) -> None:
    """Hybrid: mamba and attention layers in turn."""
    file = _start(path, "jamba", 4, LAYERS)
    _add_ssm(file.writer)
    _heads(file.writer, [0, HEADS_KV] * (LAYERS // 2))
    file.ones("output_norm.weight", EMBD)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        file.ones(prefix + "attn_norm.weight", EMBD)
        if layer % 2:
            _attention(file, prefix)
        else:
            _mamba_layer(file, prefix, norms=True)
        _feed_forward(file, prefix)
    file.close()


def write_lfm2(path: Path) -> None:
    """Hybrid: short convolutions and attention layers in turn."""
    file = _start(path, "lfm2", 5, LAYERS)
    _heads(file.writer, [0, HEADS_KV] * (LAYERS // 2))
    file.writer.add_shortconv_l_cache(3)
    file.writer.add_rope_freq_base(1e6)
    file.ones("token_embd_norm.weight", EMBD)
    for layer in range(LAYERS):
        prefix = f"blk.{layer}."
        file.ones(prefix + "attn_norm.weight", EMBD)
        if layer % 2:
            _attention(file, prefix, qk_norm=True)
        else:
            file.random(prefix + "shortconv.conv.weight", EMBD, 3, scale=0.6)
            file.random(prefix + "shortconv.in_proj.weight", 3 * EMBD, EMBD)
            file.random(prefix + "shortconv.out_proj.weight", EMBD, EMBD)
        _feed_forward(file, prefix)
    file.close()


def write_embedding(path: Path) -> None:
    """bert architecture with mean pooling: makes embeddings and nothing else."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *[f"▁{c}" for c in letters], *letters]
    file = _File(path, "bert", 6)
    writer = file.writer
    writer.add_context_length(512)
    writer.add_embedding_length(EMBD)
    writer.add_block_count(2)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(0)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([int(CONTROL)] * 5 + [int(NORMAL)] * (len(tokens) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    file.random("token_embd.weight", len(tokens), EMBD, scale=1.0)
    file.random("position_embd.weight", 512, EMBD, scale=0.3)
    file.random("token_types.weight", 2, EMBD, scale=0.1)
    _layer_norm(file, "token_embd_norm")
    for layer in range(2):
        prefix = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            file.random(prefix + name + ".weight", EMBD, EMBD)
            file.random(prefix + name + ".bias", EMBD, scale=0.1)
        _layer_norm(file, prefix + "attn_output_norm")
        file.random(prefix + "ffn_up.weight", FF, EMBD)
        file.random(prefix + "ffn_up.bias", FF, scale=0.1)
        file.random(prefix + "ffn_down.weight", EMBD, FF)
        file.random(prefix + "ffn_down.bias", EMBD, scale=0.1)
        _layer_norm(file, prefix + "layer_output_norm")
    file.close()


def _layer_norm(file: _File, name: str) -> None:
    file.ones(name + ".weight", EMBD)
    file.tensor(name + ".bias", np.zeros(EMBD))


def write_lora(path: Path, *, seed: int = 7, embd: int = EMBD, q_dim: int = EMBD, layers: int = LAYERS) -> None:
    """A LoRA of rank 4 on the query projections of a llama-architecture model with these dimensions."""
    file = _File(path, "llama", seed)
    file.writer.add_type(gguf.GGUFType.ADAPTER)
    file.writer.add_string("adapter.type", "lora")
    file.writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(layers):
        file.random(f"blk.{layer}.attn_q.weight.lora_a", 4, embd)
        file.random(f"blk.{layer}.attn_q.weight.lora_b", q_dim, 4)
    file.close()


def smollm2_lora(seed: int = 11) -> Path:
    """A LoRA for SmolLM2-135M, in a file of its own."""
    path = _directory() / f"smollm2-lora-{seed}.gguf"
    if not path.exists():
        write_lora(path, seed=seed, embd=576, q_dim=576, layers=30)
    return path


_WRITERS = {
    "attention": write_attention,
    "window": write_window,
    "mamba": write_mamba,
    "jamba": write_jamba,
    "lfm2": write_lfm2,
    "embedding": write_embedding,
    "no_vocab": functools.partial(write_attention, vocab=False),
    "lora": write_lora,
    "lora2": functools.partial(write_lora, seed=8),
}

# --- broken files -----------------------------------------------------------------------------------------------------


def truncated(path: Path, keep: float) -> Path:
    """A copy that ends early: after the share `keep` of its bytes."""
    return _copy_with(path, "truncated.gguf", lambda data: data[: int(len(data) * keep)])


def flipped(path: Path, offset: int) -> Path:
    """A copy with all bits of the byte at `offset` flipped; a negative one counts from the end."""

    def flip(data: bytes) -> bytes:
        position = offset % len(data)
        return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]

    return _copy_with(path, "flipped.gguf", flip)


def absurd_counts(path: Path) -> Path:
    """A copy whose header claims 2^60 tensors and as many metadata entries."""
    return _copy_with(path, "absurd.gguf", lambda data: data[:8] + (1 << 60).to_bytes(8, "little") * 2 + data[24:])


def text_file() -> Path:
    """A file that is no GGUF."""
    path = scratch_path("notes.gguf")
    path.write_text("This is not a model. " * 50)
    return path


def empty_file() -> Path:
    """A file of no bytes."""
    path = scratch_path("empty.gguf")
    path.touch()
    return path


def _copy_with(path: Path, name: str, change) -> Path:
    copy = scratch_path(name)
    copy.write_bytes(change(path.read_bytes()))
    return copy
