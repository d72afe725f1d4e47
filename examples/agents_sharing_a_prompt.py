"""Several agents with one long system prompt: it is computed once, and shared by all of them.

    python -m examples.agents_sharing_a_prompt tiny

The first request pays for the prompt. The burst of agents after it shares the tokens it left behind: in the model's own memory
while they are there, from the cache otherwise.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from erllama_host import Client
from erllama_host.client import Completion, Model

RULES = "\n".join(
    f"Rule {n}: a careful reviewer checks point {n} of the list before saying anything." for n in range(40)
)
AGENTS = {
    "style": "Is the sentence 'me go home' well written?",
    "facts": "Is the sentence 'water boils at 50 degrees' true?",
    "tone": "Is the sentence 'do it now' polite?",
    "summary": "Summarise your rules in one sentence.",
}


def ask(model: Model, question: str) -> Completion:
    """One agent: the shared rules, then its own question."""
    prompt = f"{RULES}\n\nQuestion: {question}\nAnswer:"
    return model.complete(prompt, max_tokens=16, stop="\n")


def main(model_id: str) -> None:
    """Warm the shared prompt, then let all agents ask at once."""
    with Client() as host, ThreadPoolExecutor(len(AGENTS)) as pool:
        model = host.model(model_id)
        warmed = model.prefill_only(RULES)
        print(f"the shared prompt: {warmed.stats.prompt_tokens} tokens in {warmed.stats.client_total_ms:.0f} ms")
        answers = pool.map(lambda question: ask(model, question), AGENTS.values())
        for name, done in zip(AGENTS, answers, strict=True):
            cache, stats = done.cache, done.stats
            print(
                f"{name:>8}: {cache.read_tokens} of {stats.prompt_tokens} tokens shared, first token after "
                f"{stats.client_ttft_ms:.0f} ms:{done.text}"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
