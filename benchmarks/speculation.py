"""Prompt-lookup speculation: its gain where the answer copies the prompt, its loss where it does not."""

from collections.abc import Callable

from benchmarks.arithmetic import interleaved, median
from benchmarks.figures import Figure
from benchmarks.host import HostModel, benchmark_host
from benchmarks.setting import Setting

PART = "speculation"
N_CTX = 2048
DRAFT_TOKENS = 8
PASSAGE_TOKENS = 200
NUM_TOKENS = 96


def run(setting: Setting) -> list[Figure]:
    """The same greedy requests with and without drafts of up to 8 tokens, interleaved; one stream."""
    passage = setting.corpus.prompt(800, PASSAGE_TOKENS)
    copying = passage + passage + passage[:24]
    with benchmark_host() as host:
        plain = host.load(setting.model, "plain", n_ctx=N_CTX, n_seq_max=1)
        lookup = host.load(setting.model, "lookup", n_ctx=N_CTX, n_seq_max=1, prompt_lookup=DRAFT_TOKENS)
        chatting = plain.model.apply_chat_template(
            [{"role": "user", "content": "Tell me a story about a lighthouse keeper who learns to sail."}]
        )
        return [
            _compare(setting, "copy-heavy task, prompt lookup on", plain, lookup, copying),
            _compare(setting, "chat, prompt lookup on", plain, lookup, list(chatting)),
        ]


def _compare(setting: Setting, name: str, plain: HostModel, lookup: HostModel, prompt: list[int]) -> Figure:
    samples = interleaved({"on": _rate(lookup, prompt), "off": _rate(plain, prompt)}, setting.repeats(5, 2))
    return Figure(PART, name, median(samples["on"]), "tokens/s", "lookup off", median(samples["off"]), samples=samples)


def _rate(model: HostModel, prompt: list[int]) -> Callable[[int], float]:
    return lambda _number: model.stream(prompt, NUM_TOKENS).decode_tokens_per_s
