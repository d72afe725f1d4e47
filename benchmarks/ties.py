"""How often company changes a greedy answer: each prompt alone, then the same eight together.

A batch of another shape moves the last bits of llama.cpp's logits, so a near-tie may fall the other way. Every token is still the
likeliest or within a small margin of it (tests/models/test_engine_smollm2.py checks that, teacher-forced); this counts the flips.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure
from benchmarks.host import HostModel, benchmark_host
from benchmarks.setting import Setting

PART = "ties"
NUM_TOGETHER = 8
PROMPT_TOKENS = 48
NUM_TOKENS = 48


def run(setting: Setting) -> list[Figure]:
    """Answers that differ anywhere, of all; and the share of tokens before the first difference."""
    differing = same_tokens = answers = 0
    with benchmark_host() as host:
        model = host.load(setting.model, "tiny", n_ctx=1024, n_seq_max=NUM_TOGETHER)
        for index in range(setting.repeats(4)):
            prompts = [
                setting.corpus.prompt(1200 + index * NUM_TOGETHER + number, PROMPT_TOKENS)
                for number in range(NUM_TOGETHER)
            ]
            alone = [_answer(model, prompt) for prompt in prompts]
            with ThreadPoolExecutor(NUM_TOGETHER) as pool:
                together = list(pool.map(lambda prompt: _answer(model, prompt), prompts))
            for one, other in zip(alone, together, strict=True):
                answers += 1
                differing += one != other
                same_tokens += _common(one, other)
    return [
        Figure(PART, f"answers of {NUM_TOKENS} tokens that company changes, of {answers}", float(differing), "answers"),
        Figure(PART, "tokens before the first difference", 100 * same_tokens / (answers * NUM_TOKENS), "%"),
    ]


def _answer(model: HostModel, prompt: Sequence[int]) -> list[int]:
    return model.model.complete(list(prompt), max_tokens=NUM_TOKENS, ignore_eos=True).generated


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next((index for index, (left, right) in pairs if left != right), len(one))
