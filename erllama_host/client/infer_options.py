"""The keyword arguments of every call that generates, and how they become an `Infer` message. Pure."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, get_type_hints

import msgspec

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.calls import AdapterInfo
from erllama_host.protocol.inference import AdapterUse, ChatRequest, Infer, SamplingParams, pack_tokens
from erllama_host.protocol.validate import check_infer

Prompt: TypeAlias = str | Sequence[int]
"""A prompt is text, or token ids. It is always the whole conversation."""
AdapterChoice: TypeAlias = Mapping[str, float] | Sequence["str | AdapterInfo | tuple[str, float]"]


class InferOptions(TypedDict, total=False):
    """Options of one request; each has a default. `SamplingParams` and `Infer` tell the ranges.

    Attributes:
        max_tokens: most tokens of the answer; n_ctx minus prompt when left out; 0 computes and saves the prompt only.
        temperature, top_k, top_p, min_p, typical_p: how to choose the next token; greedy when left out.
        repetition_penalty, presence_penalty, frequency_penalty, penalty_last_n: against repetition.
        seed: of sampling; drawn by the worker when left out.
        logit_bias: token id → added to its logit; -inf bans it.
        stop: one text or several that end the answer and are not part of it.
        grammar: GBNF that the answer must follow. json_schema: a schema (dict or JSON text) that it must follow.
        logprobs: how many alternatives to report per token, 0 to 20; none when left out.
        session_id: keeps the sequence of this conversation in the worker between requests.
        deadline_s: end after so many seconds, wherever the request is.
        priority: higher goes first, -100 to 100.
        adapters: handles, or handle → scale: used instead of the attached set. An empty list uses none.
        parent_key: `finish_key` of an earlier answer to continue from.
        pin_prefix: so many leading prompt tokens are saved and kept as a prefix.
        ignore_eos: go on past the end token.
        parse_special: read `<|…|>` in a text prompt as special tokens.
        max_resumes: how often in a row, without a new token, the request is taken up again after its worker died; 0 never.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int
    seed: int | None
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    grammar: str | None
    json_schema: Mapping[str, Any] | str | None
    logprobs: int | None
    session_id: str | None
    deadline_s: float | None
    priority: int
    adapters: AdapterChoice | None
    parent_key: bytes | None
    pin_prefix: int
    ignore_eos: bool
    parse_special: bool
    max_resumes: int


OPTION_NAMES = tuple(get_type_hints(InferOptions))
_OF_CLIENT = ("deadline_s", "max_resumes")
_OF_SAMPLING = frozenset(SamplingParams.__struct_fields__)


@dataclass(frozen=True)
class InferRequest:
    """A checked request, and what of it is the client's own business."""

    body: Infer
    deadline_s: float | None
    max_resumes: int | None


def infer_request(prompt: "Prompt | ChatRequest", options: Mapping[str, Any]) -> InferRequest:
    """Build and check a request.

    Raises:
        InvalidRequest: an option does not exist (the message names the nearest one), or has a bad value.
    """
    check_names(options)
    values = {name: _plain(name, value) for name, value in options.items() if name not in _OF_CLIENT}
    sampling = {name: values.pop(name) for name in list(values) if name in _OF_SAMPLING}
    fields = {**prompt_fields(prompt), **values, "params": SamplingParams(**sampling)}
    body = _checked(Infer(**fields))
    return InferRequest(body, _positive(options, "deadline_s"), _resumes(options))


def check_names(options: Mapping[str, Any]) -> None:
    """Refuse names that are no option.

    Raises:
        InvalidRequest: names the stranger, and what may have been meant.
    """
    for name in options:
        if name not in OPTION_NAMES:
            near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the options are: {', '.join(OPTION_NAMES)}"
            raise InvalidRequest(f"there is no option {name!r}{hint}", field=name)


def prompt_fields(prompt: "Prompt | ChatRequest") -> dict[str, Any]:
    """The field of `Infer` that carries the prompt.

    Raises:
        InvalidRequest: it is neither text nor ids nor a conversation.
    """
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, ChatRequest):
        return {"chat": prompt}
    return {"tokens": packed(prompt)}


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids for the wire.

    Raises:
        InvalidRequest: not a sequence of ids.
    """
    if isinstance(tokens, str | bytes):
        raise InvalidRequest("tokens must be a sequence of integers; text has to be tokenised first", field="tokens")
    return pack_tokens(tokens)


def adapter_uses(choice: AdapterChoice) -> list[AdapterUse]:
    """Handles, infos, pairs or a mapping as the wire has them.

    Raises:
        InvalidRequest: something else.
    """
    if isinstance(choice, Mapping):
        return [AdapterUse(handle, float(scale)) for handle, scale in choice.items()]
    uses = []
    for item in choice if not isinstance(choice, str) else [choice]:
        match item:
            case str():
                uses.append(AdapterUse(item))
            case AdapterInfo():
                uses.append(AdapterUse(item.handle, item.scale))
            case (str(handle), int() | float() as scale):
                uses.append(AdapterUse(handle, float(scale)))
            case _:
                raise InvalidRequest(f"adapters: {item!r} is no handle and no (handle, scale)", field="adapters")
    return uses


def _plain(name: str, value: Any) -> Any:
    """An option's value as the wire has it."""
    try:
        match name:
            case "stop":
                return [value] if isinstance(value, str) else list(value)
            case "json_schema" if isinstance(value, Mapping):
                return json.dumps(value)
            case "logit_bias":
                return {str(token): float(bias) for token, bias in value.items()}
            case "adapters" if value is not None:
                return adapter_uses(value)
            case _:
                return value
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"{name} has a value of the wrong kind, {value!r}: {error}", field=name) from error


def _checked(body: Infer) -> Infer:
    """Types, as the host would check them, by the way to the wire and back; then ranges. A mistake is told before a send."""
    try:
        body = msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=Infer)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`").removeprefix("params.")
        raise InvalidRequest(f"{field}: {text}" if field else text, field=field or None) from error
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be encoded: {error}") from error
    check_infer(body)
    return body


def _positive(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise InvalidRequest(f"{name} must be a number of seconds greater than 0, got {value!r}", field=name)
    return float(value)


def _resumes(options: Mapping[str, Any]) -> int | None:
    value = options.get("max_resumes")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidRequest(f"max_resumes must be 0 or greater, got {value!r}", field="max_resumes")
    return value
