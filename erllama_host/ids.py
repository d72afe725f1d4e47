"""Names and numbers that identify things: model ids, request refs, incarnations. Pure.

A *ref* names one request for ever: `<model_id>/<32 hex digits>`. Whoever holds a ref knows which model to route to,
so the controller needs no table of requests.
"""

import re
import secrets
from typing import NewType

from erllama_host.errors import InvalidRequest

ModelId = NewType("ModelId", str)
Ref = NewType("Ref", str)

MODEL_ID_RULE = "1 to 64 characters of a-z 0-9 . _ -, beginning with a letter or digit"
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_REF = re.compile(r"(?P<model>[a-z0-9][a-z0-9._-]{0,63}|@host)/[0-9a-f]{32}\Z")

HOST_TARGET = "@host"
"""Stands in a ref where a model id would, for requests to the host itself."""

AUTO_ID_PREFIX = "erllama_model_"


def check_model_id(text: str) -> ModelId:
    """Return `text` as a model id.

    Ids become watcher and file names, and circus folds case: hence lower case only.

    Raises:
        InvalidRequest: `text` breaks the rule; the message states it.
    """
    if not _MODEL_ID.match(text):
        raise InvalidRequest(f"model_id {text!r} is not valid: it must be {MODEL_ID_RULE}", field="model_id")
    return ModelId(text)


def auto_model_id(counter: int) -> ModelId:
    """The id of the `counter`-th model loaded without one; the counter never goes back on a host."""
    return ModelId(f"{AUTO_ID_PREFIX}{counter}")


def new_ref(model_id: str = HOST_TARGET) -> Ref:
    """A fresh ref for a request to `model_id` (128 random bits)."""
    return Ref(f"{model_id}/{secrets.token_hex(16)}")


def model_of(ref: str) -> ModelId | None:
    """The model a ref belongs to; None for a request to the host, or for text that is not a ref."""
    match = _REF.match(ref)
    if match is None or match["model"] == HOST_TARGET:
        return None
    return ModelId(match["model"])


def new_routing_id() -> bytes:
    """A ZeroMQ routing id that is kept over reconnects: 0x01 (so never a ZeroMQ-made one, which start with 0) + 16 bytes."""
    return b"\x01" + secrets.token_bytes(16)


def new_incarnation(now_ns: int) -> str:
    """Identifies one life of a process; a later life sorts after an earlier one.

    Args:
        now_ns: wall clock, nanoseconds since the epoch.
    """
    return f"{now_ns:020d}-{secrets.token_hex(4)}"
