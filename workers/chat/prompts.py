"""Conversations to token ids, with replies of this model replayed exactly. See `Chat`."""

from dataclasses import dataclass
from pathlib import Path

from erllama_host.errors import NotSupported
from erllama_host.protocol.inference import ChatRequest
from workers.model import LoadedModel


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation: its ids and, for people, its text."""

    ids: list[int]
    text: str


class Chat:
    """Renders conversations."""

    def render(self, chat: ChatRequest) -> ChatPrompt:
        """Render and tokenise."""
        raise NotSupported("this model's file has no chat template; send a prompt instead", what="template")

    def prompt(self, chat: ChatRequest) -> list[int]:
        """Only the ids."""
        return self.render(chat).ids

    def remember(self, ids: tuple[int, ...]) -> None:
        """Keep a reply."""


def make_chat(model: LoadedModel, replies_file: Path) -> Chat:
    """The conversations of a loaded model."""
    return Chat()
