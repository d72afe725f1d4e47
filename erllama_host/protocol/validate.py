"""Ranges of inference requests, checked by the client before sending and by the worker on receipt. Pure."""

import math
from collections.abc import Callable

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import Infer, SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_GRAMMAR_BYTES = 64 << 10
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_SESSION_ID_CHARS = 128

_Range = tuple[Callable[[float], bool], str]

_PARAM_RANGES: dict[str, _Range] = {
    "temperature": (lambda v: 0 <= v <= 100, "from 0 to 100"),
    "top_k": (lambda v: 0 <= v < 2**31, "0 (off) or greater"),
    "top_p": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "min_p": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "typical_p": (lambda v: 0 < v <= 1, "greater than 0 and at most 1"),
    "repetition_penalty": (lambda v: 0 < v <= 10, "greater than 0 and at most 10"),
    "presence_penalty": (lambda v: -2 <= v <= 2, "from -2 to 2"),
    "frequency_penalty": (lambda v: -2 <= v <= 2, "from -2 to 2"),
    "penalty_last_n": (lambda v: -1 <= v <= 65536, "from -1 (the whole context) to 65536"),
}


def check_params(params: SamplingParams) -> None:
    """Check every sampling parameter.

    Raises:
        InvalidRequest: names the field and its range.
    """
    for name, (fits, wording) in _PARAM_RANGES.items():
        value = getattr(params, name)
        if not math.isfinite(value) or not fits(value):
            raise _bad(name, f"must be {wording}, got {value!r}")
    if params.seed is not None and not 0 <= params.seed < 2**32:
        raise _bad("seed", f"must be from 0 to 2**32-1, got {params.seed}")
    if params.logprobs is not None and not 0 <= params.logprobs <= MAX_LOGPROBS:
        raise _bad("logprobs", f"must be from 0 to {MAX_LOGPROBS}, got {params.logprobs}")
    _check_logit_bias(params.logit_bias)
    _check_grammar(params)


def check_infer(request: Infer) -> None:
    """Check a whole request, what needs the model aside.

    Raises:
        InvalidRequest: names the field.
    """
    check_params(request.params)
    if sum(p is not None for p in (request.text, request.tokens, request.chat)) != 1:
        raise _bad("prompt", "give exactly one of text, tokens and chat")
    if request.max_tokens is not None and not 0 <= request.max_tokens < 2**31:
        raise _bad("max_tokens", f"must be 0 or greater, got {request.max_tokens}")
    if not -100 <= request.priority <= 100:
        raise _bad("priority", f"must be from -100 to 100, got {request.priority}")
    if request.pin_prefix < 0:
        raise _bad("pin_prefix", f"must be 0 or greater, got {request.pin_prefix}")
    if not 0 <= request.credit <= 1 << 20:
        raise _bad("credit", f"must be from 0 to {1 << 20}, got {request.credit}")
    if request.parent_key is not None and len(request.parent_key) != 32:
        raise _bad("parent_key", f"must be 32 bytes, got {len(request.parent_key)}")
    if request.session_id is not None and not 1 <= len(request.session_id) <= MAX_SESSION_ID_CHARS:
        raise _bad("session_id", f"must have 1 to {MAX_SESSION_ID_CHARS} characters")
    _check_stop(request.stop)
    for use in request.adapters or []:
        if not math.isfinite(use.scale):
            raise _bad("adapters", f"the scale of {use.handle!r} is not finite")


def _check_stop(stop: list[str]) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise _bad("stop", f"at most {MAX_STOP_STRINGS} strings, got {len(stop)}")
    if any(not 1 <= len(s) <= MAX_STOP_CHARS for s in stop):
        raise _bad("stop", f"each string must have 1 to {MAX_STOP_CHARS} characters")


def _check_logit_bias(bias: dict[str, float]) -> None:
    if len(bias) > MAX_LOGIT_BIAS:
        raise _bad("logit_bias", f"at most {MAX_LOGIT_BIAS} tokens, got {len(bias)}")
    for token, value in bias.items():
        if not token.isascii() or not token.isdigit():
            raise _bad("logit_bias", f"keys are token ids, got {token!r}")
        if math.isnan(value) or value == math.inf:
            raise _bad("logit_bias", f"the bias of {token} must be a number below infinity, got {value}")


def _check_grammar(params: SamplingParams) -> None:
    if params.grammar is not None and params.json_schema is not None:
        raise _bad("grammar", "give grammar or json_schema, not both")
    for name in ("grammar", "json_schema"):
        text = getattr(params, name)
        if text is not None and len(text.encode()) > MAX_GRAMMAR_BYTES:
            raise _bad(name, f"is larger than {MAX_GRAMMAR_BYTES} bytes")


def _bad(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {what}" if field != "prompt" else what, field=field)
