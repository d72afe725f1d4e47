"""Tokens and text through llama.cpp's vocabulary, which is immutable: every call may come from any thread."""

import ctypes
from collections.abc import Sequence
from typing import Any

from erllama_host.errors import NotSupported
from workers.backend.checks import check_ids
from workers.backend.constraint import TokenTable
from workers.backend.llama.library import lib

_NO_VOCAB = 0
"""LLAMA_VOCAB_TYPE_NONE: asking such a vocabulary for text aborts the process."""
_EXTRA_TOKENS = 16


class LlamaVocabulary:
    """See `Vocabulary`. Pieces are looked up once per token and kept."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self._has_text: bool = lib.llama_vocab_type(self._vocab) != _NO_VOCAB
        self._size = int(lib.llama_vocab_n_tokens(self._vocab))
        self._pieces: list[bytes | None] = [None] * self._size
        self._spelled: list[bytes | None] = [None] * self._size
        self.eog_ids = frozenset(
            token for token in range(self._size) if self._has_text and lib.llama_vocab_is_eog(self._vocab, token)
        )

    @property
    def native(self) -> Any:
        """The library's own handle."""
        return self._vocab

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_text(self) -> bool:
        """False for files that were written without a tokenizer: they know token ids only."""
        return self._has_text

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As `Vocabulary.tokenize`.

        Raises:
            NotSupported: the file has no tokenizer.
        """
        self._require_text()
        data = text.encode(errors="replace")
        room = len(data) + _EXTRA_TOKENS
        count, ids = self._tokenize(data, room, add_special, parse_special)
        if count < 0:
            count, ids = self._tokenize(data, -count, add_special, parse_special)
        return list(ids[:count])

    def _tokenize(self, data: bytes, room: int, add_special: bool, parse_special: bool) -> tuple[int, Any]:
        ids = (lib.llama_token * room)()
        return lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special), ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """As `Vocabulary.detokenize`.

        Raises:
            InvalidRequest: an id is out of range. NotSupported: the file has no tokenizer.
        """
        self._require_text()
        self.check_ids(ids)
        native = (lib.llama_token * len(ids))(*ids)
        room = 8 * len(ids) + _EXTRA_TOKENS
        count, text = self._detokenize(native, room)
        if count < 0:
            count, text = self._detokenize(native, -count)
        return str(text.raw[:count].decode(errors="replace"))

    def _detokenize(self, native: Any, room: int) -> tuple[int, Any]:
        text = ctypes.create_string_buffer(room)
        return lib.llama_detokenize(self._vocab, native, len(native), text, room, False, False), text

    def piece(self, token: int) -> bytes:
        return self._look_up(self._pieces, token, special=False)

    def special_piece(self, token: int) -> bytes:
        return self._look_up(self._spelled, token, special=True)

    def is_eog(self, token: int) -> bool:
        return token in self.eog_ids

    def check_ids(self, ids: Sequence[int]) -> None:
        check_ids(ids, self._size)

    def make_table(self) -> TokenTable:
        """Every piece, sorted, for grammars. Some 0.1 s for a vocabulary of 49 000."""
        self._require_text()
        return TokenTable([self.piece(token) for token in range(self._size)], self.eog_ids)

    def text_of(self, token: int) -> str:
        """The vocabulary's own spelling of a token such as BOS; empty for none."""
        if not 0 <= token < self._size or not self._has_text:
            return ""
        return str((lib.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace"))

    def _look_up(self, table: list[bytes | None], token: int, *, special: bool) -> bytes:
        known = table[token]
        if known is None:
            known = table[token] = self._piece(token, special, 64) if self._has_text else b""
        return known

    def _piece(self, token: int, special: bool, room: int) -> bytes:
        text = ctypes.create_string_buffer(room)
        count = lib.llama_token_to_piece(self._vocab, token, text, room, 0, special)
        return text.raw[:count] if count >= 0 else self._piece(token, special, -count)

    def _require_text(self) -> None:
        if not self._has_text:
            raise NotSupported("this model's file has no tokenizer: give token ids instead of text")
