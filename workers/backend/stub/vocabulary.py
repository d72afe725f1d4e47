"""The stub's vocabulary: one token per byte, then a few special ones. Immutable, so safe from any thread."""

import re
from collections.abc import Sequence

from workers.backend.checks import check_ids
from workers.backend.constraint import TokenTable

BOS = "<s>"
EOS = "</s>"
END_OF_TURN = "<|im_end|>"
CONTROL_TEXTS = (BOS, EOS, "<|im_start|>", END_OF_TURN)
MARKER_TEXTS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Tokens that are visible in the text, as such markers are in real vocabularies."""

_SPECIAL_TEXTS = (*CONTROL_TEXTS, *MARKER_TEXTS)
_SPECIAL = re.compile("(" + "|".join(re.escape(text) for text in _SPECIAL_TEXTS) + ")")

SPECIAL_IDS = {text: 256 + index for index, text in enumerate(_SPECIAL_TEXTS)}
VOCAB_SIZE = 256 + len(_SPECIAL_TEXTS)
EOG_IDS = frozenset((SPECIAL_IDS[EOS], SPECIAL_IDS[END_OF_TURN]))

CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class StubVocabulary:
    """See `Vocabulary`."""

    def __init__(self) -> None:
        self._spelled = [bytes([value]) for value in range(256)] + [text.encode() for text in _SPECIAL_TEXTS]
        self._pieces = [b"" if self._is_control(index) else text for index, text in enumerate(self._spelled)]

    @property
    def size(self) -> int:
        return VOCAB_SIZE

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As `Vocabulary.tokenize`; the stub adds no special tokens around a text."""
        if not parse_special:
            return list(text.encode())
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            ids += [SPECIAL_IDS[part]] if part in SPECIAL_IDS else part.encode()
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        self.check_ids(ids)
        return b"".join(self._pieces[token] for token in ids).decode(errors="replace")

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def special_piece(self, token: int) -> bytes:
        return self._spelled[token]

    def is_eog(self, token: int) -> bool:
        return token in EOG_IDS

    def check_ids(self, ids: Sequence[int]) -> None:
        check_ids(ids, VOCAB_SIZE)

    def make_table(self) -> TokenTable:
        """Every piece, sorted, for grammars."""
        return TokenTable(self._pieces, EOG_IDS)

    @staticmethod
    def _is_control(token: int) -> bool:
        return 256 <= token < 256 + len(CONTROL_TEXTS)
