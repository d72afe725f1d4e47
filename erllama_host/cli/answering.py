"""Show an answer while it is made; shared by `run` and `chat`.

The answer goes to stdout as it comes. Thinking and tool calls are dim on a terminal, and left out when piped. The first
Ctrl-C cancels the answer at the next token, and what there is stays; a second one is an ordinary interrupt.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from erllama_host.cli.words import plural

if TYPE_CHECKING:
    from erllama_host.client import Stream
    from erllama_host.client.results import Piece, StreamStats

_DIM, _NORMAL = "\x1b[2m", "\x1b[0m"


@dataclass
class Answer:
    """What has been shown: texts per channel, and whether Ctrl-C ended it."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def text(self) -> str:
        """The answer proper."""
        return "".join(self.texts.get("text", ()))

    def channel(self, name: str) -> str:
        """Text of one channel: `thinking` or `tool_call`."""
        return "".join(self.texts.get(name, ()))


def show(stream: "Stream", out: TextIO | None) -> Answer:
    """Read the stream to its end and show it on `out` (None: show nothing)."""
    from erllama_host.cli.progress import waiting

    answer = Answer()
    printer = _Printer(out) if out is not None else None
    spinner = ExitStack()
    try:
        if out is not None and out.isatty():
            spinner.enter_context(waiting("reading the prompt"))
        while True:
            try:
                piece = next(stream, None)
                if piece is None:
                    break
                spinner.close()
                answer.texts.setdefault(piece.channel, []).append(piece.text)
                if printer is not None:
                    printer.show(piece)
            except KeyboardInterrupt:  # while waiting, or while writing to a slow terminal
                if answer.interrupted:
                    raise
                answer.interrupted = True
                stream.cancel()
    finally:
        spinner.close()
        if printer is not None:
            printer.finish()
    return answer


class _Printer:
    """Writes pieces as they come; knows whether the line and the dimness are open."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._styled = out.isatty()
        self._dim = False
        self._line_open = False

    def show(self, piece: "Piece") -> None:
        """Write one piece."""
        aside = piece.channel != "text"
        if not piece.text or (aside and not self._styled):
            return
        if aside != self._dim:
            self._out.write(_DIM if aside else _NORMAL + "\n")
            self._dim = aside
        self._out.write(piece.text)
        self._out.flush()
        self._line_open = not piece.text.endswith("\n")

    def finish(self) -> None:
        """End the last line, so that the prompt or the next output begins on its own."""
        if self._dim:
            self._out.write(_NORMAL)
        if self._line_open:
            self._out.write("\n")
        self._out.flush()


def stats_line(stats: "StreamStats") -> str:
    """One line of figures: tokens, speed, time to first token, and what the cache did."""
    parts = [
        f"{plural(stats.prompt_tokens, 'prompt token')}, {stats.generated_tokens} generated",
        f"{stats.tokens_per_s:.1f} tok/s" if stats.tokens_per_s > 0 else "",
        f"first token after {stats.client_ttft_ms:.0f} ms" if stats.client_ttft_ms > 0 else "",
        cache_text(stats),
        f"resumed {plural(stats.resumes, 'time')}" if stats.resumes else "",
        f"ended by {stats.cancel_reason or stats.finish_reason}",
    ]
    return " · ".join(part for part in parts if part)


def cache_text(stats: "StreamStats") -> str:
    """`cache exact, 1 024 tokens read` or why it was cold."""
    cache = stats.cache
    if cache.read_tokens:
        return f"cache {cache.kind}: {cache.read_tokens} tokens read"
    return f"cache {cache.kind}" + (f" ({cache.miss_reason})" if cache.miss_reason else "")


def to_stdout(as_json: bool) -> TextIO | None:
    """Where an answer is shown: nowhere when it is printed as JSON in the end."""
    return None if as_json else sys.stdout
