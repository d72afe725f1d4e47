"""What worker and template helper say to each other over the helper's stdin and stdout. Pure.

frame     u32 little-endian length, then MessagePack
start     `Start`, once            answered by an `Answer` with `ready`, or with `error`
render    `Job`, any number        answered by an `Answer` each
"""

import struct
from typing import Any

import msgspec

CPU_S = 2.0
"""CPU time one rendering, or the compilation of the template, may take."""
LENGTH = struct.Struct("<I")


class Start(msgspec.Struct):
    """First frame: the template and the texts it may use."""

    template: str
    bos: str
    eos: str


class Job(msgspec.Struct):
    """One rendering.

    Attributes:
        marks: paths of strings inside `messages`, e.g. `[2, "content"]`, whose places in the text are wanted.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    options: dict[str, Any] = {}
    marks: list[list[int | str]] = []


class Answer(msgspec.Struct, omit_defaults=True):
    """What comes back.

    Attributes:
        runs: the text cut at the marked strings, as `[text, mark]` with mark -1 between them; None where the template changed them.
        error: why there is no text. refused: the template itself refused the messages (`raise_exception`).
        unfit: it stumbled over what the messages hold or lack.
    """

    ready: bool = False
    text: str = ""
    runs: list[tuple[str, int]] | None = None
    error: str | None = None
    refused: bool = False
    unfit: bool = False


def pack(message: msgspec.Struct) -> bytes:
    """One frame."""
    frame = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(frame)) + frame
