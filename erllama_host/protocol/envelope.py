"""Frames on every ZeroMQ socket of the host: `[envelope][body]`. Pure.

    envelope   MessagePack array [version, kind, ref, model, deadline_ms, peer]
    body       MessagePack map, one type per kind (the tables in `kinds.py`); empty where a kind needs none

A ROUTER sees the sender's routing id as one more frame before these. The envelope carries all that routing needs, so
the controller forwards bodies unread and keeps no table of requests: it can die in the middle of a stream and come back.

    client → controller   peer is empty
    controller → worker   peer is the client's routing id
    worker → controller   peer is copied from the request: where the reply must go
    controller → client   peer is empty again
"""

from typing import Any, TypeVar

import msgspec

from erllama_host.errors import InvalidRequest, ProtocolMismatch

PROTOCOL_VERSION = 1
MAX_ENVELOPE_BYTES = 1024
MAX_BODY_BYTES = 16 << 20
"""Bound of one message body, checked before it is decoded. A 1 M token prompt is 4 MiB."""

T = TypeVar("T")


class Envelope(msgspec.Struct, array_like=True, frozen=True):
    """Addresses one message.

    Attributes:
        version: PROTOCOL_VERSION of the sender.
        kind: name of a row of `kinds.py`, or of a reply (`reply`, `error`, `progress`, `accepted`, `tokens`, `done`, `lost`).
        ref: names the request (ids.py); replies carry the ref of what they answer.
        model: model id; empty for the host itself.
        deadline_ms: time left for the request when it was sent, milliseconds; 0 is none.
        peer: routing id of the client, between controller and worker only.
    """

    version: int
    kind: str
    ref: str
    model: str = ""
    deadline_ms: int = 0
    peer: bytes = b""


_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode_envelope(envelope: Envelope) -> bytes:
    """The first frame."""
    return _encoder.encode(envelope)


def decode_envelope(frame: bytes) -> Envelope:
    """Read the first frame.

    Raises:
        InvalidRequest: not an envelope.
        ProtocolMismatch: an envelope of another protocol version.
    """
    if len(frame) > MAX_ENVELOPE_BYTES:
        raise InvalidRequest(f"envelope of {len(frame)} bytes; at most {MAX_ENVELOPE_BYTES} are allowed")
    try:
        envelope = _envelope_decoder.decode(frame)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
    ) as error:  # msgspec leaves text that is not UTF-8 to Python's own error
        raise InvalidRequest(f"the first frame is not an envelope: {error}") from error
    if envelope.version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"protocol version {envelope.version} is not spoken here; this host speaks {PROTOCOL_VERSION}",
            version=PROTOCOL_VERSION,
        )
    return envelope


def encode_body(body: Any) -> bytes:
    """The second frame; None is the empty frame."""
    return b"" if body is None else _encoder.encode(body)


def decode_body(kind: str, frame: bytes, body_type: type[T]) -> T:
    """Read the second frame as `body_type`. An empty frame stands for a body with all defaults.

    Raises:
        InvalidRequest: wrong structure, wrong type, unknown field, or too large; the message names the field.
    """
    if len(frame) > MAX_BODY_BYTES:
        raise InvalidRequest(f"{kind}: a body of {len(frame)} bytes; at most {MAX_BODY_BYTES} are allowed")
    decoder = _decoders.get(body_type)
    if decoder is None:
        decoder = _decoders[body_type] = msgspec.msgpack.Decoder(body_type)
    try:
        return decoder.decode(frame or b"\x80")  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{kind}: {error}", field=field_of(str(error))) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{kind}: the body is not MessagePack: {error}") from error


def field_of(message: str) -> str | None:
    """The field a msgspec validation message speaks of (`… - at `$.params.top_k``, or an unknown field)."""
    for opening in ("- at `$.", "unknown field `", "required field `"):
        _, found, rest = message.partition(opening)
        if found:
            return rest.partition("`")[0]
    return None
