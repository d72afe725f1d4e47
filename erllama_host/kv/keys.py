"""Cache keys: token-exact by construction. Pure.

    key(n) = sha256(effective_fp ‖ quant_byte ‖ ctx_params_hash ‖ tokens[0:n] as little-endian u32)

Two rows share a key only if the same model file, adapter set, weight quantisation and context shape computed exactly
the same tokens. SHA-256 is incremental, so one pass over a prompt yields the key at every block boundary. `key(0)` is
the *root*: the parent of first blocks, and the name of the key space.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields

import msgspec

from erllama_host.kv.tokens import TOKEN_BYTES

KEY_BYTES = 32
UNKNOWN_QUANT = 255
CTX_PARAMS_VERSION = 1

QUANT_BYTES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "BF16": 2,
    "Q4_0": 3,
    "Q4_1": 4,
    "Q5_0": 5,
    "Q5_1": 6,
    "Q8_0": 7,
    "Q2_K": 8,
    "Q2_K_S": 9,
    "Q3_K_S": 10,
    "Q3_K_M": 11,
    "Q3_K_L": 12,
    "Q4_K_S": 13,
    "Q4_K_M": 14,
    "Q5_K_S": 15,
    "Q5_K_M": 16,
    "Q6_K": 17,
    "IQ1_S": 18,
    "IQ1_M": 19,
    "IQ2_XXS": 20,
    "IQ2_XS": 21,
    "IQ2_S": 22,
    "IQ2_M": 23,
    "IQ3_XXS": 24,
    "IQ3_XS": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ4_NL": 28,
    "IQ4_XS": 29,
    "TQ1_0": 30,
    "TQ2_0": 31,
    "MXFP4": 32,
}
"""Weight quantisation as one byte of the key. Frozen: numbers are never reused, new names take the next free one."""


def quant_byte(name: str) -> int:
    """The byte of a quantisation name such as `Q4_K_M` (case does not matter); `UNKNOWN_QUANT` for any other."""
    return QUANT_BYTES.get(name.upper(), UNKNOWN_QUANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextShape:
    """Everything about a llama context that changes its KV bytes or what they mean. The one list of such things.

    Adding a field changes every hash: bump `CTX_PARAMS_VERSION` with it, and the old segments are simply never met.
    """

    type_k: str
    type_v: str
    kv_rotation: bool
    """Whether quantised KV is stored rotated (llama.cpp's attention rotation)."""
    flash_attn: bool
    rope_scaling: str
    rope_freq_base: float
    rope_freq_scale: float
    rope_factors: str
    """`none`, `short` or `long`: the choice llama.cpp makes from the context size for models with two factor sets."""
    yarn_ext_factor: float
    yarn_attn_factor: float
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_orig_ctx: int
    swa_mode: str
    """`none`, `full` or `window`."""
    llama_build: str
    """Version and system that made the bytes: another build may lay a state blob out differently."""


def ctx_params_hash(shape: ContextShape) -> bytes:
    """32 bytes: sha256 of the shape as a MessagePack map with sorted keys and a version."""
    values: dict[str, str | bool | int | float] = {
        field.name: _canonical(field.type, getattr(shape, field.name)) for field in fields(shape)
    }
    values["version"] = CTX_PARAMS_VERSION
    return hashlib.sha256(msgspec.msgpack.encode(dict(sorted(values.items())))).digest()


def _canonical(declared: object, value: str | bool | int | float) -> str | bool | int | float:
    # 10000 and 10000.0 are one setting and must be one encoding.
    return float(value) if declared in (float, "float") else value


def effective_fingerprint(model_fp: bytes, adapters: Iterable[tuple[bytes, float]] = ()) -> bytes:
    """The fingerprint of a model with an adapter set applied.

    Args:
        model_fp: the model's fingerprint, 32 bytes.
        adapters: (sha256 of the adapter file, scale) pairs; their order does not matter.
    Returns:
        `model_fp` itself without adapters, else sha256(model_fp ‖ sorted(adapter_sha256 ‖ i64le(round(scale·2³²)))).
    """
    assert len(model_fp) == KEY_BYTES
    parts = sorted(sha + struct.pack("<q", round(scale * 2**32)) for sha, scale in adapters)
    return hashlib.sha256(model_fp + b"".join(parts)).digest() if parts else model_fp


@dataclass(frozen=True, slots=True)
class KeySpace:
    """Where keys of one (model, adapter set, quantisation, context shape) live.

    Attributes:
        effective_fp: see `effective_fingerprint`, 32 bytes.
        quant: see `quant_byte`.
        ctx_hash: see `ctx_params_hash`, 32 bytes.
    """

    effective_fp: bytes
    quant: int
    ctx_hash: bytes

    @property
    def prefix(self) -> bytes:
        """What every key of the space hashes before the tokens."""
        return self.effective_fp + bytes([self.quant]) + self.ctx_hash

    @property
    def root(self) -> bytes:
        """key(0). Also the *namespace* of the space: all that the cache daemon ever sees of a fingerprint."""
        return hashlib.sha256(self.prefix).digest()

    def chain(self, block_tokens: int) -> "KeyChain":
        """An empty chain of keys in this space."""
        return KeyChain(self, block_tokens)

    def key(self, packed: bytes) -> bytes:
        """The key of a whole packed token sequence."""
        return hashlib.sha256(self.prefix + packed).digest()


class KeyChain:
    """The keys of one growing token sequence: at every block boundary, and at its end.

    Attributes:
        block_keys: `block_keys[i]` is key((i + 1) · block_tokens), for every full block so far.
    """

    def __init__(self, space: KeySpace, block_tokens: int) -> None:
        assert block_tokens > 0
        self.space = space
        self.block_tokens = block_tokens
        self.block_keys: list[bytes] = []
        self.root = space.root
        self._hasher = hashlib.sha256(space.prefix)
        self._num_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens hashed so far."""
        return self._num_tokens

    def extend(self, packed: bytes) -> list[bytes]:
        """Append tokens; return the keys of the blocks that became full."""
        assert len(packed) % TOKEN_BYTES == 0
        first_new, offset = len(self.block_keys), 0
        while offset < len(packed):
            room = (self.block_tokens - self._num_tokens % self.block_tokens) * TOKEN_BYTES
            piece = packed[offset : offset + room]
            self._hasher.update(piece)
            self._num_tokens += len(piece) // TOKEN_BYTES
            offset += len(piece)
            if self._num_tokens % self.block_tokens == 0:
                self.block_keys.append(self._hasher.digest())
        return self.block_keys[first_new:]

    def key(self) -> bytes:
        """key(num_tokens)."""
        return self._hasher.digest()

    def boundary_key(self, position: int) -> bytes:
        """key(position) for a multiple of `block_tokens` that has been hashed; the root for 0."""
        assert position % self.block_tokens == 0
        return self.block_keys[position // self.block_tokens - 1] if position else self.root

    def boundary(self) -> int:
        """The last block boundary at or below the end."""
        return self._num_tokens - self._num_tokens % self.block_tokens

    def copy(self) -> "KeyChain":
        """An independent chain that goes on from the same point (a fork)."""
        twin = KeyChain(self.space, self.block_tokens)
        twin.block_keys = self.block_keys.copy()
        twin._hasher = self._hasher.copy()
        twin._num_tokens = self._num_tokens
        return twin
