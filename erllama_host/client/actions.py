"""What the pure halves of the client ask their shell to do. Pure.

`StreamState` and `CallState` never touch a socket or a clock: they take events with the time they came and return these.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

from erllama_host.client.results import Piece
from erllama_host.errors import ErllamaError


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message of `kind` under the exchange's ref."""

    kind: str
    body: Any


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand these pieces to the reader, in this order."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Notify:
    """Show an intermediate event (progress of a load) to whoever watches."""

    event: Any


@dataclass(frozen=True, slots=True)
class End:
    """The exchange is over and this is its result: a reply body, or a `StreamEnd`."""

    result: Any


@dataclass(frozen=True, slots=True)
class Fail:
    """The exchange is over with this error."""

    error: ErllamaError


Action: TypeAlias = Send | Deliver | Notify | End | Fail
