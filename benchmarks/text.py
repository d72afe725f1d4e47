"""Prompts: English-looking text made from word lists and a seed, so that no file is needed and every run asks the same. Pure."""

import random
from collections.abc import Callable

_PEOPLE = ("the keeper", "a pilot", "the harbour master", "two sailors", "the cook", "an old captain", "the surgeon")
_DEEDS = ("wrote down", "measured", "doubted", "reported", "forgot", "remembered", "repaired", "sold", "counted")
_THINGS = (
    "the tide",
    "seven barrels",
    "a broken lamp",
    "the north wind",
    "three letters",
    "a chart of the bay",
    "the bell",
)
_PLACES = (
    "near the old pier",
    "below the cliffs",
    "at the lighthouse",
    "in the outer harbour",
    "on the sandbank",
    "at sea",
)
_TIMES = (
    "before dawn",
    "at noon",
    "in the first watch",
    "after the storm",
    "on Sunday",
    "late in autumn",
    "that winter",
)
_WORDS_PER_TOKEN = 1.0  # the text has about 0.8 words per token: one word per token wanted is more than enough


def prose(seed: int, num_words: int) -> str:
    """At least `num_words` words. Texts of different seeds differ from their first words on."""
    draw = random.Random(seed)
    sentences = [f"Volume {seed}, {draw.choice(_TIMES)}:"]
    words = 0
    while words < num_words:
        parts = [draw.choice(words_of) for words_of in (_PEOPLE, _DEEDS, _THINGS, _PLACES, _TIMES)]
        sentence = f"{' '.join(parts).capitalize()}, and noted the number {draw.randrange(10_000)}."
        words += len(sentence.split())
        sentences.append(sentence)
    return " ".join(sentences)


class Corpus:
    """Token prompts of any length, the same for every system that is compared."""

    def __init__(self, tokenize: Callable[[str], list[int]]) -> None:
        self._tokenize = tokenize
        self._known: dict[int, list[int]] = {}

    def prompt(self, seed: int, num_tokens: int) -> list[int]:
        """`num_tokens` token ids. Prompts of one seed are prefixes of one another; those of two share at most a few tokens."""
        tokens = self._known.get(seed, [])
        if len(tokens) < num_tokens:
            tokens = self._tokenize(prose(seed, int(num_tokens * _WORDS_PER_TOKEN) + 8))
            self._known[seed] = tokens
        if len(tokens) < num_tokens:
            raise ValueError(f"the text of seed {seed} has {len(tokens)} tokens, {num_tokens} were asked for")
        return tokens[:num_tokens]
