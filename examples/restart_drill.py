"""A drill for operators: kill a model's process under a running stream, and see that nobody notices.

    python -m examples.restart_drill tiny

Kills with SIGKILL, so it must run as the host's user on the host's machine. Ends with an error if a token was lost.
"""

import os
import signal
import sys
import time

from erllama_host import Client

PROMPT = "Count slowly: one, two, three,"
NUM_TOKENS = 40


def main(model_id: str) -> None:
    """Stream, kill after a few tokens, and check the rest."""
    with Client() as host:
        model = host.model(model_id)
        pid = host.models()[model_id][0]
        ids: list[int] = []
        worst_gap_s, last = 0.0, time.monotonic()
        with model.infer(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True) as stream:
            for piece in stream:
                assert piece.seq == len(ids), "a token was lost or repeated"
                now = time.monotonic()
                worst_gap_s, last = max(worst_gap_s, now - last), now
                if len(ids) < 5 <= len(ids) + len(piece.token_ids):
                    os.kill(pid, signal.SIGKILL)
                    print(f"killed process {pid} after {len(ids)} tokens")
                ids += piece.token_ids
        stats = stream.stats
        assert stats is not None
        assert len(ids) == NUM_TOKENS, f"{len(ids)} tokens instead of {NUM_TOKENS}"
        pid = host.models()[model_id][0]
        print(f"process {pid} went on; longest pause {worst_gap_s:.2f} s, resumes {stats.resumes}, tokens lost 0")
        print(f"the text: {model.detokenize(ids)!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
