"""The answer of one stream as far as it is known, and the credit its reader grants. Pure; owned by `StreamState`."""

from collections.abc import Sequence
from enum import Enum

from erllama_host.client.results import Piece
from erllama_host.protocol.inference import Part, TokenLogprobs, Tokens, unpack_tokens


class Fit(Enum):
    """How a `tokens` event relates to what is there."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"


class Answer:
    """Ids in sequence, nothing twice, nothing left out."""

    def __init__(self) -> None:
        self.next_index = 0
        self._ids = bytearray()

    @property
    def ids(self) -> bytes:
        """All ids so far, packed."""
        return bytes(self._ids)

    def fit(self, event: Tokens) -> Fit:
        """Whether `event` comes next. One that overlaps the end is a gap too: its text cannot be cut."""
        if event.first_index == self.next_index:
            return Fit.NEXT
        end = event.first_index + len(event.ids) // 4
        return Fit.REPEATED if end <= self.next_index else Fit.GAP

    def take(self, event: Tokens) -> tuple[Piece, ...]:
        """Append an event that fits; the pieces to deliver."""
        pieces = _pieces(event.parts, unpack_tokens(event.ids), self.next_index, event.logprobs)
        self._ids += event.ids
        self.next_index += len(event.ids) // 4
        return pieces

    def rest(self, parts: Sequence[Part]) -> tuple[Piece, ...]:
        """The pieces of the text that was held back until the end."""
        return _pieces(parts, [], self.next_index, None) if parts else ()


class Credit:
    """How many tokens the worker may send: the reader's position plus a window.

    `granted` is the index up to which the worker may go, as far as we know.
    """

    def __init__(self, window: int, chunk: int) -> None:
        """`chunk`: no grant is smaller, so that credit costs few messages."""
        self._window = window
        self._chunk = chunk
        self._read_index = 0
        self.granted = 0

    def read(self, num_tokens: int) -> bool:
        """The reader took some more. Returns whether a grant is due."""
        self._read_index += num_tokens
        return self._read_index + self._window - self.granted >= self._chunk

    def initial(self, next_index: int) -> int:
        """What a request carries itself, `next_index` tokens having been delivered."""
        self.granted = max(self._read_index + self._window, next_index)
        return self.granted - next_index

    def grant(self) -> int:
        """Tokens to grant now; counted as granted from here on."""
        limit = max(self._read_index + self._window, self.granted)
        tokens, self.granted = limit - self.granted, limit
        return tokens


def _pieces(
    parts: Sequence[Part], ids: list[int], first_index: int, logprobs: list[TokenLogprobs] | None
) -> tuple[Piece, ...]:
    """One piece per part; the ids go with the first, since text and ids do not line up within one event."""
    first, *rest = parts or [Part("text", "")]
    end = first_index + len(ids)
    head = Piece(first.text, ids, first_index, first.channel, logprobs)
    return (head, *(Piece(part.text, [], end, part.channel) for part in rest))
