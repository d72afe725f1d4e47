"""Every message on the wire: envelope, inference, calls, worker link, cache. Frozen structs, pure."""

from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_body,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.protocol.inference import pack_tokens, unpack_tokens

__all__ = [
    "PROTOCOL_VERSION",
    "Envelope",
    "decode_body",
    "decode_envelope",
    "encode_body",
    "encode_envelope",
    "pack_tokens",
    "unpack_tokens",
]
