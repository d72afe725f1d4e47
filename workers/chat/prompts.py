"""Conversations to token ids: rendered by the model's template, replies of this model replayed with the ids they were made of.

The text is tokenised whole, with special tokens parsed, as the template means it. Two kinds of message strings are cut out of it:

    replies    an assistant message that is byte for byte a reply of this model gets the ids of that reply, if what the template
               writes after it begins with a special token: then no merge across the seam is lost
    guarded    a string that would read as a control token (`<|im_end|>` typed by a user) is tokenised as plain text, so that nobody
               can end a turn that is not theirs
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erllama_host.errors import InvalidRequest, NotSupported
from erllama_host.observability import Log
from erllama_host.protocol.inference import ChatRequest
from workers.backend.base import Vocabulary
from workers.backend.values import ModelFacts
from workers.chat.frames import Answer, Job, Start
from workers.chat.helper import TemplateHelper
from workers.chat.replay import ReplayTable
from workers.model import LoadedModel

MAX_MESSAGES = 10_000
_MAX_CHECKED = 8192

StringPath = list[int | str]


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation: its ids and, for people, its text."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class _Mark:
    """A message string with a place of its own in the text; `ids` for a reply, None for a guarded string."""

    path: StringPath
    ids: list[int] | None


class Chat:
    """Conversations of one model. `render` in the background thread, `remember` in the service thread."""

    def __init__(self, vocabulary: Vocabulary, facts: ModelFacts, replies: ReplayTable) -> None:
        self._vocabulary = vocabulary
        self._facts = facts
        self._replies = replies
        self._control: dict[bytes, bool] = {}
        self._helper: TemplateHelper | None = None

    def prompt(self, chat: ChatRequest) -> list[int]:
        """Only the ids of `render`."""
        return self.render(chat).ids

    def render(self, chat: ChatRequest) -> ChatPrompt:
        """Render and tokenise a conversation. Blocks for up to seconds.

        Raises:
            InvalidRequest: the messages are malformed, or the template refuses them.
            NotSupported: no template, or one that cannot be run within its limits.
        """
        messages = _checked(chat)
        marks = list(self._marks(messages))
        answer = self._helper_for_template().render(_job(chat, messages, marks))
        guarded = [mark for mark in marks if mark.ids is None]
        if marks and answer.runs is None and guarded and len(guarded) < len(marks):
            marks = guarded  # a reply was changed by the template; what is guarded must be found all the same
            answer = self._helper_for_template().render(_job(chat, messages, marks))
        if guarded and answer.runs is None:
            raise InvalidRequest(
                f"messages hold text that reads as a control token of this model, and its template changes it "
                f"(message {guarded[0].path[0]})",
                field="chat.messages",
            )
        return ChatPrompt(self._tokenize(answer, marks), answer.text)

    def remember(self, ids: Sequence[int]) -> None:
        """Keep a reply, so that it is replayed when it comes back as a message.

        One that is no valid text cannot come back; nor can one with control tokens in it (`ignore_eos`), which its text lacks.
        """
        pieces = [self._vocabulary.piece(token) for token in ids]
        try:
            text = b"".join(pieces).decode()
        except UnicodeDecodeError:
            return
        if all(pieces):
            self._replies.remember(text, ids)

    def close(self) -> None:
        """End the helper process, close the file."""
        if self._helper is not None:
            self._helper.close()
        self._replies.close()

    def _helper_for_template(self) -> TemplateHelper:
        if self._helper is None:
            template = self._facts.chat_template
            if template is None:
                raise NotSupported(
                    "this model's file has no chat template; send the prompt as text or tokens", what="template"
                )
            self._helper = TemplateHelper(Start(template, self._facts.bos_text, self._facts.eos_text))
        return self._helper

    def _marks(self, messages: list[dict[str, Any]]) -> list[_Mark]:
        marks = []
        for path, text, is_reply in _strings(messages):
            ids = self._replies.find(text) if is_reply else None
            if ids is not None or self._reads_as_control(text):
                marks.append(_Mark(path, ids))
        return marks

    def _reads_as_control(self, text: str) -> bool:
        """Whether `text` spells a control token. Remembered: every turn brings all earlier messages again."""
        key = hashlib.sha256(text.encode()).digest()
        if key not in self._control:
            if len(self._control) >= _MAX_CHECKED:
                self._control.clear()
            tokenize = self._vocabulary.tokenize
            self._control[key] = tokenize(text, add_special=False, parse_special=True) != tokenize(
                text, add_special=False
            )
        return self._control[key]

    def _tokenize(self, answer: Answer, marks: list[_Mark]) -> list[int]:
        ids: list[int] = []
        if self._facts.add_bos and self._facts.bos_id is not None and not answer.text.startswith(self._facts.bos_text):
            ids.append(self._facts.bos_id)
        literal = ""
        for text, replacement in self._pieces(answer, marks):
            if replacement is None:
                literal += text
            else:
                ids += self._literal(literal) + replacement
                literal = ""
        return ids + self._literal(literal)

    def _pieces(self, answer: Answer, marks: list[_Mark]) -> list[tuple[str, list[int] | None]]:
        """The text in pieces, each with the ids that stand for it, or None where it is to be tokenised with its neighbours."""
        runs = answer.runs or [(answer.text, -1)]
        pieces: list[tuple[str, list[int] | None]] = []
        for (text, mark), (following, _) in zip(runs, [*runs[1:], ("", -1)], strict=True):
            ids = marks[mark].ids if mark >= 0 and self._begins_special(following) else None
            if ids is None and mark >= 0 and self._reads_as_control(text):
                ids = self._vocabulary.tokenize(text, add_special=False)
            pieces.append((text, ids))
        return pieces

    def _begins_special(self, text: str) -> bool:
        """Whether the first token of `text` is one that only parsing of special tokens yields."""
        head = text[:64]
        parsed = self._vocabulary.tokenize(head, add_special=False, parse_special=True)
        return bool(parsed) and not self._vocabulary.piece(parsed[0])

    def _literal(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True) if text else []


def make_chat(model: LoadedModel, replies_file: Path, log: Log) -> Chat:
    """The conversations of a loaded model."""
    replies = ReplayTable(replies_file, bytes.fromhex(model.fingerprint), log=log)
    return Chat(model.vocabulary, model.facts, replies)


def _job(chat: ChatRequest, messages: list[dict[str, Any]], marks: list[_Mark]) -> Job:
    return Job(
        messages=messages,
        tools=chat.tools,
        add_generation_prompt=chat.add_generation_prompt,
        options=chat.template_options,
        marks=[mark.path for mark in marks],
    )


def _checked(chat: ChatRequest) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": chat.system}] if chat.system is not None else []
    messages = [*system, *chat.messages]
    if not chat.messages:
        raise InvalidRequest("messages must not be empty", field="chat.messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"at most {MAX_MESSAGES} messages, got {len(messages)}", field="chat.messages")
    for index, message in enumerate(chat.messages):
        if not isinstance(message.get("role"), str):
            raise InvalidRequest(f"message {index} has no role", field="chat.messages")
    return messages


def _strings(messages: list[dict[str, Any]]) -> list[tuple[StringPath, str, bool]]:
    """Every text a message holds: path, text, and whether it may be a reply of the model."""
    found: list[tuple[StringPath, str, bool]] = []
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, str):
            found.append(([index, "content"], content, message.get("role") == "assistant"))
        elif isinstance(content, list):
            for at, part in enumerate(content):
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    found.append(([index, "content", at, "text"], part["text"], False))
    return found
