"""Dimensions of a context from options and the model's facts. Pure; the same for every backend."""

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ModelLoadFailed
from workers.backend.values import ContextLimits

DEFAULT_N_CTX_MAX = 8192
MAX_NATIVE_SEQS = 256
"""LLAMA_MAX_SEQ: a context with more, or a row with a higher id, is refused or aborts."""
NUM_RETAINED = 12
"""Ids beyond the slots, for finished sequences that stay as live cache. 4 → 256 ids cost 5 % of a step, 12 nothing."""
NUM_RETAINED_RECURRENT = 4
"""Fewer where every id owns a whole recurrent state."""
MIN_OUTPUTS = 32
"""Output rows bound the compute buffer (514 → 26 MiB for gemma's vocabulary at 16), so there are few."""


def resolve_limits(
    config: ModelConfig, *, n_ctx_train: int, has_recurrent: bool, seqs_per_id: int, num_inner_seqs: int
) -> ContextLimits:
    """The context's dimensions.

    Args:
        seqs_per_id: native sequences behind one visible id (2 where retained ones need a second owner).
        num_inner_seqs: native sequences kept for the implementation's own use.

    Raises:
        ModelLoadFailed: names the option that cannot be met.
    """
    n_ctx = config.n_ctx or min(n_ctx_train or DEFAULT_N_CTX_MAX, DEFAULT_N_CTX_MAX)
    most = (MAX_NATIVE_SEQS - num_inner_seqs) // seqs_per_id
    if config.n_seq_max > most:
        raise ModelLoadFailed(
            f"n_seq_max {config.n_seq_max} is too large: this model can run {most} sequences", option="n_seq_max"
        )
    retained = NUM_RETAINED_RECURRENT if has_recurrent else NUM_RETAINED
    outputs = max(MIN_OUTPUTS, config.n_seq_max * (1 + config.prompt_lookup))
    return ContextLimits(
        n_ctx=n_ctx,
        num_cells=config.n_cells or 2 * n_ctx,
        num_slots=config.n_seq_max,
        num_seqs=min(config.n_seq_max + retained, most),
        max_rows=config.n_batch,
        max_outputs=min(outputs, config.n_batch),
        max_embed_tokens=min(config.n_ubatch, n_ctx_train or config.n_ubatch),
    )
