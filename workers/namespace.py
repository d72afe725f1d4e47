"""The key spaces of a loaded model: one per adapter set. Pure but for its memory of spaces already made."""

from functools import lru_cache

from erllama_host.kv.keys import ContextShape, KeySpace, ctx_params_hash, effective_fingerprint, quant_byte

MAX_SPACES = 128
"""Spaces remembered: every scale that a request names makes one."""


class Namespace:
    """Makes key spaces; sets in use give the identical object, so that comparing is cheap."""

    def __init__(self, model_fp: bytes, quant_name: str, ctx_hash: bytes) -> None:
        """
        Args:
            model_fp: fingerprint of the model file, 32 bytes.
            quant_name: weight quantisation, e.g. `Q4_K_M`.
            ctx_hash: see `context_hash`.
        """
        self.model_fp = model_fp
        quant = quant_byte(quant_name)
        self._space = lru_cache(MAX_SPACES)(lambda effective_fp: KeySpace(effective_fp, quant, ctx_hash))

    @property
    def root(self) -> bytes:
        """Root key of the model without adapters: what the cache daemon knows this model's rows by."""
        return self.space([]).root

    def space(self, adapters: list[tuple[bytes, float]]) -> KeySpace:
        """The key space of an adapter set, given as (sha256, scale) pairs."""
        return self._space(effective_fingerprint(self.model_fp, adapters))


def context_hash(configured: str | None, shape: ContextShape) -> bytes:
    """ctx_params_hash of a model: what the configuration says (64 hex digits), or derived from the context as made."""
    return bytes.fromhex(configured) if configured else ctx_params_hash(shape)
