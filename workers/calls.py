"""Calls to a model that are not streams: answered here at once, prepared in the background, or handed to the engine.

Owner of the table of calls that wait for the engine: the service thread. Every call gets exactly one `reply` or `error`, at the
latest at its deadline.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erllama_host.errors import ErllamaError, InvalidRequest, QueueFull, Timeout
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import pack_tokens, unpack_tokens
from erllama_host.protocol.kinds import MODEL_KINDS
from workers.backend.base import Vocabulary
from workers.commands import Answer, EmbedTexts, EngineCall
from workers.model import LoadedModel
from workers.speculation import propose

MAX_WAITING = 1024
MAX_EMBED_INPUTS = 1024
MAX_DRAFT = 64
INLINE_BYTES = 16 << 10
"""A text up to this long is tokenised in the service loop (about 2 ms); a longer one in the background."""

ENGINE_KINDS = frozenset(
    {"embed", "load_adapter", "unload_adapter", "set_adapter_scale", "list_adapters", "evict", "shutdown"}
    | {"cached_prefix_len", "end_session", "fork", "verify"}
)


@dataclass(frozen=True)
class _Waiting:
    reply: Callable[[Any], None]
    fail: Callable[[ErllamaError], None]
    kind: str
    deadline: float | None


class EngineCalls:
    """The calls that the engine has not answered yet."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self) -> None:
        """Before taking a client's call; the worker's own are few, and always have room.

        Raises:
            QueueFull: too many wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise QueueFull(f"{MAX_WAITING} calls wait for this model", retry_after_s=1.0)

    def begin(
        self,
        kind: str,
        deadline: float | None,
        reply: Callable[[Any], None],
        fail: Callable[[ErllamaError], None],
    ) -> int:
        """Note a call; returns its id. `reply` or `fail` is called once, from `answered` or `expire`."""
        self._last_id += 1
        self._waiting[self._last_id] = _Waiting(reply, fail, kind, deadline)
        return self._last_id

    def answered(self, answer: Answer) -> None:
        """Pass an answer on. One that comes after the deadline is dropped."""
        call = self._waiting.pop(answer.call_id, None)
        if call is None:
            return
        if answer.error is not None:
            call.fail(answer.error)
        else:
            call.reply(answer.result)

    def expire(self, now: float) -> None:
        """Fail what has passed its deadline."""
        for call_id, call in list(self._waiting.items()):
            if call.deadline is not None and now >= call.deadline:
                del self._waiting[call_id]
                call.fail(Timeout(f"{call.kind}: the model did not answer before the deadline"))


def body_for_engine(kind: str, body: Any, vocabulary: Vocabulary) -> Any:
    """The body of an engine call with ids instead of texts, every id checked.

    Raises:
        InvalidRequest: names the field.
    """
    if kind == "embed":
        return EmbedTexts(_embed_inputs(body, vocabulary), body.normalize)
    for name in ("tokens", "draft"):
        packed = getattr(body, name, None)
        if isinstance(packed, bytes):
            vocabulary.check_ids(unpack_tokens(packed))
    return body


def engine_call(call_id: int, kind: str, body: Any, deadline: float | None) -> EngineCall:
    """The command for a call."""
    assert kind in ENGINE_KINDS and kind in MODEL_KINDS
    return EngineCall(call_id, kind, body, deadline)


def answer_text_call(kind: str, body: Any, model: LoadedModel) -> Any:
    """Answer `tokenize`, `detokenize` or `draft`: nothing but the vocabulary is needed.

    Raises:
        InvalidRequest: an id is out of range.
    """
    vocabulary = model.vocabulary
    if kind == "tokenize":
        ids = vocabulary.tokenize(body.text, add_special=body.add_special, parse_special=body.parse_special)
        return c.TokenList(tokens=pack_tokens(ids))
    ids = unpack_tokens(body.tokens)
    vocabulary.check_ids(ids)
    if kind == "draft":
        if not 0 <= body.n <= MAX_DRAFT:
            raise InvalidRequest(f"n must be from 0 to {MAX_DRAFT}, got {body.n}", field="n")
        return c.TokenList(tokens=pack_tokens(propose(array("i", ids), body.n)))
    if not body.special:
        return c.Text(text=vocabulary.detokenize(ids))
    return c.Text(text=b"".join(map(vocabulary.special_piece, ids)).decode(errors="replace"))


def num_text_bytes(body: Any) -> int:
    """Roughly how much work the vocabulary has with a call."""
    total = 0
    for name in ("text", "texts", "tokens", "draft"):
        value = getattr(body, name, None) or b""
        total += len(value) if isinstance(value, str | bytes) else sum(map(len, value))
    return total


def _embed_inputs(body: c.Embed, vocabulary: Vocabulary) -> list[bytes]:
    if (body.tokens is None) == (body.texts is None):
        raise InvalidRequest("give exactly one of tokens and texts", field="tokens")
    inputs = body.tokens if body.tokens is not None else body.texts
    assert inputs is not None
    if len(inputs) > MAX_EMBED_INPUTS:
        raise InvalidRequest(f"at most {MAX_EMBED_INPUTS} inputs, got {len(inputs)}", field="tokens")
    if body.texts is not None:
        return [pack_tokens(vocabulary.tokenize(text)) for text in body.texts]
    for packed in body.tokens or []:
        vocabulary.check_ids(unpack_tokens(packed))
    return list(body.tokens or [])
