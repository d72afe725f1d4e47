"""Log probabilities of tokens from a row of logits. Pure numpy; the same for every backend.

They are the model's own distribution, before temperature, cuts, penalties and grammar, so that they compare between
requests.
"""

import numpy as np

from erllama_host.protocol.inference import TokenLogprobs
from workers.backend.values import Logits


def logprob_of(logits: Logits, token: int, num_top: int) -> TokenLogprobs:
    """Log-softmax of `logits`, shape (n_vocab,), at `token` and at its `num_top` largest entries.

    About half a millisecond for a vocabulary of 49 000, so only on request.
    """
    highest = float(logits.max())
    normalizer = highest + float(np.log(np.exp(logits - highest, dtype=np.float32).sum(dtype=np.float64)))
    top: list[tuple[int, float]] = []
    if num_top > 0:
        num_top = min(num_top, len(logits))
        best = np.argpartition(logits, -num_top)[-num_top:]
        # Ties are ordered by id, so that equal logits give equal reports.
        best = best[np.lexsort((best, -logits[best]))]
        top = [(int(token_id), float(logits[token_id]) - normalizer) for token_id in best]
    return TokenLogprobs(float(logits[token]) - normalizer, top)
