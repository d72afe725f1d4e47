"""Starts `loop.py` and asks it: the in-process reference of every part."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.setting import ROOT, THREADS


class LoopFailed(RuntimeError):
    """The loop's process could not load the model, or ended."""


class InProcessLoop:
    """The other end of `loop.py`. One command at a time.

    Attributes:
        load_s: seconds llama.cpp took to load the model, make a context and decode one token.
        resident_bytes: memory of that process then: the model's own, plus a bare interpreter.
    """

    name = "in-process loop"

    def __init__(self, process: "subprocess.Popen[str]", opening: dict[str, Any]) -> None:
        self._process = process
        answer = self._ask(opening)
        self.load_s: float = answer["load_s"]
        self.resident_bytes: int = answer["resident_bytes"]

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`."""
        tokens: list[int] = self._ask({"op": "tokenize", "text": text})["tokens"]
        return tokens

    def prefill_s(self, prompt: Sequence[int]) -> float:
        """Seconds from an empty context to the first token."""
        return float(self._ask({"op": "prefill", "prompt": list(prompt)})["prefill_s"])

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> dict[str, float]:
        """All prompts side by side: `wall_s`, `decode_s` (inside llama_decode) and `num_tokens` of all together."""
        answer: dict[str, float] = self._ask(
            {"op": "generate", "prompts": [list(prompt) for prompt in prompts], "num_tokens": num_tokens}
        )
        return answer

    def tokens_per_s(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Aggregate rate of `generate`."""
        answer = self.generate(prompts, num_tokens)
        return answer["num_tokens"] / answer["wall_s"]

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LoopFailed(f"the in-process loop ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LoopFailed(answer["error"])
        return answer


@contextmanager
def in_process_loop(model: Path, n_ctx: int, n_seq_max: int = 1, threads: int = THREADS) -> Iterator[InProcessLoop]:
    """A loop on `model` that ends with the block.

    Raises:
        LoopFailed: llama.cpp cannot load it.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loop"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        opening = {"op": "open", "model": str(model), "n_ctx": n_ctx, "n_seq_max": n_seq_max, "threads": threads}
        try:
            yield InProcessLoop(process, opening)
        finally:
            process.kill()
