"""From token ids to text that may be shown: UTF-8 complete, stop strings cut, channels told apart. Pure.

`AnswerText` is one answer. What it has released is a function of the ids pushed so far and of nothing else: not of how
they were grouped into pushes, not of time. So a resumed stream pushes the ids that were delivered, drops what comes out,
and goes on exactly where the client stopped reading.

Three rules decide what leaves, in this order:

    bytes      an incomplete UTF-8 character waits for its rest; bytes that cannot become one are U+FFFD
    patterns   text is scanned for stop strings and for the markers that matter in the present channel. The pattern that is
               *complete first* counts, of several ending at one character the longest. (Earliest start would be the other
               choice; but whether a longer pattern that began earlier will match is unknown while streaming, so the result
               would depend on the grouping.)
    holding    the longest end of the text that may yet become a pattern waits

A stop string ends the answer and is not part of it. A marker switches the channel and is not part of it either.
"""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from erllama_host.protocol.inference import Part
from workers.backend.base import Vocabulary

TEXT = "text"
THINKING = "thinking"
TOOL_CALL = "tool_call"

_OPENING_LOOKBACK = 16
"""Prompt tokens looked at for an opening marker; templates that open a channel do it in their last tokens."""


@dataclass(frozen=True)
class Markers:
    """Opening and closing text of the channels, as a model writes them; None where it has no such channel."""

    thinking: tuple[str, str] | None = None
    tool_call: tuple[str, str] | None = None

    def pair(self, channel: str) -> tuple[str, str] | None:
        """Markers of a channel; None for plain text."""
        return {THINKING: self.thinking, TOOL_CALL: self.tool_call}.get(channel)

    @property
    def spellings(self) -> frozenset[bytes]:
        """Every marker, as bytes."""
        return frozenset(text.encode() for pair in (self.thinking, self.tool_call) if pair for text in pair)


NO_MARKERS = Markers()


def opening_channel(vocabulary: Vocabulary, prompt: Sequence[int], markers: Markers) -> str:
    """The channel an answer to `prompt` begins in.

    Some templates write the opening of the thinking themselves, so that the answer has only the closing marker.
    """
    tail = b"".join(map(vocabulary.special_piece, prompt[-_OPENING_LOOKBACK:])).decode(errors="replace").rstrip()
    for channel in (THINKING, TOOL_CALL):
        pair = markers.pair(channel)
        if pair is not None and tail.endswith(pair[0]):
            return channel
    return TEXT


class AnswerText:
    """The text of one answer. Owned by the thread that pushes."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        stop: Sequence[str] = (),
        markers: Markers = NO_MARKERS,
        channel: str = TEXT,
    ) -> None:
        """
        Args:
            stop: non-empty texts that end the answer, in whichever channel they appear.
            channel: where the answer begins, see `opening_channel`.
        """
        self._vocabulary = vocabulary
        self._stops = tuple(stop)
        self._markers = markers
        self._marker_spellings = markers.spellings
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stop: str | None = None
        self._enter(channel)

    @property
    def stop_found(self) -> bool:
        """Whether a stop string has ended the answer; whatever is pushed now is dropped."""
        return self._stop is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop

    def push(self, ids: Iterable[int]) -> list[Part]:
        """Take in the next tokens; returns what may be shown now, neighbours of one channel merged."""
        if self._stop is not None:
            return []
        return self._scan(self._decoder.decode(b"".join(map(self._bytes_of, ids))))

    def finish(self) -> list[Part]:
        """The answer is over: release what was held back, an incomplete character as U+FFFD. Nothing after a stop string."""
        if self._stop is not None:
            return []
        parts = self._scan(self._decoder.decode(b"", final=True))
        if self._stop is None:
            _show(parts, self._channel, self._held)
            self._held = ""
        return parts

    def _bytes_of(self, token: int) -> bytes:
        """What a token adds. A control token adds nothing, unless it spells a whole marker."""
        piece = self._vocabulary.piece(token)
        if piece and not self._vocabulary.is_eog(token):
            return piece
        spelled = self._vocabulary.special_piece(token)
        return spelled if spelled in self._marker_spellings else b""

    def _enter(self, channel: str) -> None:
        self._channel = channel
        closing = self._markers.pair(channel)
        if closing is not None:
            self._switches = {closing[1]: TEXT}
        else:
            pairs = ((name, self._markers.pair(name)) for name in (THINKING, TOOL_CALL))
            self._switches = {pair[0]: name for name, pair in pairs if pair is not None}
        self._patterns = (*self._stops, *self._switches)

    def _scan(self, text: str) -> list[Part]:
        if not self._patterns:
            return [Part(self._channel, text)] if text else []
        parts: list[Part] = []
        text = self._held + text
        while (match := _first_complete(text, self._patterns)) is not None:
            start, pattern = match
            _show(parts, self._channel, text[:start])
            text = text[start + len(pattern) :]
            if pattern in self._stops:
                self._stop, self._held = pattern, ""
                return parts
            self._enter(self._switches[pattern])
        cut = _hold_from(text, self._patterns)
        _show(parts, self._channel, text[:cut])
        self._held = text[cut:]
        return parts


def _first_complete(text: str, patterns: Sequence[str]) -> tuple[int, str] | None:
    """Start and pattern of the match that ends first; of several ending there, the longest."""
    best: tuple[int, int] | None = None
    found = None
    for pattern in patterns:
        start = text.find(pattern)
        if start >= 0 and (best is None or (start + len(pattern), start) < best):
            best, found = (start + len(pattern), start), (start, pattern)
    return found


def _hold_from(text: str, patterns: Sequence[str]) -> int:
    """Where the longest end of `text` begins that is a proper beginning of a pattern; `len(text)` if there is none."""
    cut = len(text)
    for pattern in patterns:
        start = text.find(pattern[0], max(0, len(text) - len(pattern) + 1))
        while 0 <= start < cut:
            if pattern.startswith(text[start:]):
                cut = start
            start = text.find(pattern[0], start + 1)
    return cut


def _show(parts: list[Part], channel: str, text: str) -> None:
    if not text:
        return
    if parts and parts[-1].channel == channel:
        parts[-1] = Part(channel, parts[-1].text + text)
    else:
        parts.append(Part(channel, text))
