"""Messages of inference: one request kind, `infer`, and the events of its stream. Pure.

`complete`, `chat`, `prefill_only` of the client are all collected from this one kind. Token ids travel as little-endian
u32 bytes (`pack_tokens`): for 4 096 ids that is 0.1 µs instead of 65.

A stream is: `accepted`, any number of `tokens`, then exactly one `done` or `error`. The client de-duplicates `tokens` by
index, so a replay is harmless.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import Any

import msgspec

from erllama_host.errors import ErllamaError, InvalidRequest

INITIAL_CREDIT_TOKENS = 256
MAX_AHEAD_TOKENS = 1024
SILENCE_BEFORE_RESUME_S = 2.0
CLIENT_SIGN_OF_LIFE_S = 3.0
CLIENT_LOST_AFTER_S = 10.0


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """Token ids as little-endian u32.

    Raises:
        InvalidRequest: an element is not an integer in [0, 2**32).
    """
    try:
        packed = array("I", tokens)
    except (TypeError, OverflowError, ValueError) as error:
        raise InvalidRequest(f"tokens must be integers from 0 to 2**32-1: {error}", field="tokens") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_tokens(data: bytes) -> list[int]:
    """The inverse of `pack_tokens`.

    Raises:
        InvalidRequest: the length is no multiple of 4.
    """
    if len(data) % 4:
        raise InvalidRequest(f"token bytes must be a multiple of 4, got {len(data)}", field="tokens")
    unpacked = array("I")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()


class SamplingParams(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """How the next token is chosen. The defaults are greedy. Checked by `validate.py`.

    Attributes:
        temperature: 0 is greedy; at most 100.
        top_k: keep the k likeliest; 0 keeps all.
        top_p, min_p, typical_p: probability cuts in [0, 1]; 1, 0 and 1 switch them off.
        repetition_penalty: > 0; 1 switches it off. Looks back `penalty_last_n` tokens.
        presence_penalty, frequency_penalty: -2 to 2; 0 switches them off.
        seed: u32; None lets the worker draw one (it is reported in `accepted`).
        logit_bias: token id (as text, maps have text keys on the wire) → added to its logit; -inf bans it.
        grammar: GBNF. json_schema: JSON text of a schema. At most one of the two.
        logprobs: None for none, else how many alternatives to report per token (0 to 20).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    logit_bias: dict[str, float] = {}
    grammar: str | None = None
    json_schema: str | None = None
    logprobs: int | None = None


class AdapterUse(msgspec.Struct, array_like=True, frozen=True):
    """One adapter of a set: its handle and scale."""

    handle: str
    scale: float = 1.0


class ChatRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """A conversation to be rendered by the model's own template.

    Attributes:
        messages: maps with at least `role` and `content`, as the template wants them.
        system: shorthand for a first message of role `system`.
        tools: tool descriptions handed to the template.
        add_generation_prompt: end with the opening of an assistant turn.
        template_options: further variables for the template (e.g. `enable_thinking`).
    """

    messages: list[dict[str, Any]]
    system: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    template_options: dict[str, Any] = {}


class ResumePoint(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """What a client knows of a stream whose worker died, so that the next incarnation can go on.

    Attributes:
        delivered: ids generated and delivered so far, packed.
        seed: of `accepted`.
        adapters: the set of `accepted`.
        deaths: how often a worker died while it had this request; from 2 on only those count during which it ran alone.
    """

    delivered: bytes = b""
    seed: int = 0
    adapters: list[AdapterUse] = []
    deaths: int = 0


class Infer(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Body of `infer`. Exactly one of `text`, `tokens`, `chat`.

    Attributes:
        text: prompt as text, tokenised whole (`add_special` true, special tokens in it not parsed unless `parse_special`).
        tokens: prompt as packed ids.
        chat: prompt as a conversation.
        max_tokens: None is n_ctx minus the prompt; 0 is prefill only.
        stop: texts that end the answer and are not part of it.
        parent_key: finish_key of an earlier row to start from.
        session_id: pins the sequence between requests.
        priority: higher goes first; -100 to 100.
        adapters: overrides the model's attached set for this request.
        pin_prefix: number of leading prompt tokens to save and pin as a `prefix` row (0: none).
        ignore_eos: go on past end-of-generation tokens (benchmarks).
        credit: tokens the worker may send before the client grants more.
        attempt: 0 at first; +1 for every resubmission of the same ref.
        resume: set on a resubmission.
    """

    text: str | None = None
    tokens: bytes | None = None
    chat: ChatRequest | None = None
    parse_special: bool = False
    params: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop: list[str] = []
    parent_key: bytes | None = None
    session_id: str | None = None
    priority: int = 0
    adapters: list[AdapterUse] | None = None
    pin_prefix: int = 0
    ignore_eos: bool = False
    credit: int = INITIAL_CREDIT_TOKENS
    attempt: int = 0
    resume: ResumePoint | None = None


class Accepted(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """First event: the request has been taken into the model's queue. Holds what a resubmission needs.

    Attributes:
        alone: it comes again with this set where the request was there at two deaths of a worker and now runs with no other beside
            it: only then are further deaths held against it.
    """

    incarnation: str
    prompt: bytes
    seed: int
    adapters: list[AdapterUse] = []
    attempt: int = 0
    alone: bool = False


class Part(msgspec.Struct, array_like=True, frozen=True):
    """Text of one channel: `text`, `thinking` or `tool_call`."""

    channel: str
    text: str


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log probability of one emitted token and of the likeliest alternatives, `[[id, logprob], …]`."""

    logprob: float
    top: list[tuple[int, float]]


class Tokens(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Some generated tokens and the text that became complete with them.

    Attributes:
        first_index: index of the first id in the answer, from 0.
        ids: packed ids, at least one.
        parts: text, cut where the channel changes. Never half a UTF-8 character, never part of a stop string.
        logprobs: one per id, when asked for.
    """

    first_index: int
    ids: bytes = b""
    parts: list[Part] = []
    logprobs: list[TokenLogprobs] | None = None


class CacheReport(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """What the cache did for one request.

    Attributes:
        kind: `cold`, `partial`, `exact` or `live`.
        read_tokens: prompt tokens that were not computed (live and restored).
        live_tokens: of these, shared with a live sequence.
        tier_tokens: tokens read per tier.
        created_tokens: tokens whose KV was handed to the cache by this request so far.
        miss_reason: why not everything was a hit, e.g. `never_seen`, `evicted`, `daemon_away` (all: guides/caching.md); None when
            it was.
        diverged_at: index of the first prompt token that no cached row had, on a partial hit.
        lookup_ms, restore_ms: time spent.
    """

    kind: str = "cold"
    read_tokens: int = 0
    live_tokens: int = 0
    tier_tokens: dict[str, int] = {}
    created_tokens: int = 0
    miss_reason: str | None = None
    diverged_at: int | None = None
    lookup_ms: float = 0.0
    restore_ms: float = 0.0


class Stats(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Times (ms) and counts of one request. `ttft_ms` is from arrival in the worker to the first token."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    queue_ms: float = 0.0
    lookup_ms: float = 0.0
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    ttft_ms: float = 0.0
    total_ms: float = 0.0
    tokens_per_s: float = 0.0
    draft_tokens: int = 0
    draft_accepted: int = 0


class Done(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Last event of a stream that did not fail.

    Attributes:
        finish_reason: `stop` (end token), `stop_string`, `length`, `context`, `cancelled`, `prefill`.
        finish_key: key of the finished row, for `parent_key`; None when its save was gated.
        finish_len: tokens of that row.
        generated: ids of the whole answer: who has fewer asks for them with `resume`.
        parts: text that was held back until the end. Not in a `tokens`: without ids it has no index by which its loss would show.
        cancelled, cancel_reason: `client`, `unload`, `deadline`, `lost_client`, `shutdown`.
    """

    finish_reason: str
    finish_key: bytes | None = None
    finish_len: int = 0
    generated: int = 0
    parts: list[Part] = []
    cancelled: bool = False
    cancel_reason: str | None = None
    cache: CacheReport = CacheReport()
    stats: Stats = Stats()


class Cancel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Body of `cancel`; fire and forget, an unknown ref is fine."""

    reason: str = "client"


class Credit(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Body of `credit`: the client has read `tokens` more. 0 is a mere sign of life."""

    tokens: int = 0


class Resume(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Body of `resume`: send again from `next_index`. The answer is the stream itself, or `lost` from another incarnation."""

    next_index: int = 0


class Lost(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Event `lost`: this incarnation has never had that ref (or has forgotten it); the client resubmits."""

    incarnation: str = ""


class Moved(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Event `moved`, unasked, with an empty ref: the worker of `model` (envelope) has ended, or a new one serves. A hint.

    Clients that lately sent something to the model get it; they resume their streams of it now instead of after
    SILENCE_BEFORE_RESUME_S.

    Attributes:
        incarnation: of the worker that serves now; empty while none does.
    """

    incarnation: str = ""


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Body of `error`: errors.py tells what the codes mean."""

    code: str
    message: str
    retryable: bool = False
    details: dict[str, Any] = {}


def error_body(error: ErllamaError) -> ErrorBody:
    """An error as it travels; details that MessagePack does not know become text."""
    details = msgspec.to_builtins(error.details, builtin_types=(bytes,), enc_hook=str)
    return ErrorBody(code=error.code, message=error.message, retryable=error.retryable, details=details)
