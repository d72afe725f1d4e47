"""From an `infer` message to a `Submit`: what can be checked without the engine. Pure."""

import secrets

from erllama_host.errors import ContextOverflow, InvalidRequest, QueueFull, WorkerDied
from erllama_host.kv.tokens import TOKEN_BYTES
from erllama_host.protocol.inference import AdapterUse, Infer, unpack_tokens
from workers.backend.base import Vocabulary
from workers.commands import Submit

DEATHS_ALONE = 2
DEATHS_POISON = 4
"""Twice beside others, twice alone: a process may also be killed from outside at the wrong moment."""
_DURATION_WEIGHT = 0.2


def check_deaths(request: Infer) -> None:
    """Refuse a request at which too many workers died: it would take its neighbours down once more.

    Raises:
        WorkerDied: with `poison`.
    """
    if request.resume is not None and request.resume.deaths >= DEATHS_POISON:
        raise WorkerDied(
            f"the model's process died {request.resume.deaths} times while it had this request; it is not tried again",
            poison=True,
        )


def text_prompt(request: Infer, vocabulary: Vocabulary, n_ctx: int) -> list[int]:
    """Ids of a prompt given as text or ids.

    Raises:
        InvalidRequest: an id is out of range.
        ContextOverflow: more ids than fit; said before they are looked at, which takes a while for millions.
    """
    if request.text is not None:
        return vocabulary.tokenize(request.text, add_special=True, parse_special=request.parse_special)
    packed = request.tokens or b""
    if len(packed) // TOKEN_BYTES >= n_ctx:
        raise _overflow(len(packed) // TOKEN_BYTES, n_ctx)
    ids = unpack_tokens(packed)
    vocabulary.check_ids(ids)
    return ids


def make_submit(
    ref: str,
    request: Infer,
    prompt: list[int],
    *,
    vocabulary: Vocabulary,
    n_ctx: int,
    arrived_at: float,
    deadline: float | None,
) -> Submit:
    """The engine's form of a request.

    Raises:
        ContextOverflow: no room for one token after the prompt.
        InvalidRequest: an empty prompt, or a resumption that cannot be one.
    """
    if not prompt:
        raise InvalidRequest("the prompt is empty", field="prompt")
    if len(prompt) >= n_ctx:
        raise _overflow(len(prompt), n_ctx)
    room = n_ctx - len(prompt)
    max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
    delivered = _delivered(request, vocabulary, max_tokens)
    return Submit(
        ref=ref,
        prompt=prompt,
        params=request.params,
        seed=choose_seed(request),
        max_tokens=max_tokens,
        arrived_at=arrived_at,
        stop=tuple(request.stop),
        priority=request.priority,
        deadline=deadline,
        parent_key=request.parent_key,
        session_id=request.session_id,
        adapters=_adapters(request),
        pin_prefix=min(request.pin_prefix, len(prompt)),
        ignore_eos=request.ignore_eos,
        delivered=delivered,
        attempt=request.attempt,
        alone=request.resume is not None and request.resume.deaths >= DEATHS_ALONE,
    )


def choose_seed(request: Infer) -> int:
    """The caller's seed, or that of the first attempt, or a new one."""
    if request.params.seed is not None:
        return request.params.seed
    return secrets.randbits(32) if request.resume is None else request.resume.seed & 0xFFFFFFFF


def limited_by_context(request: Infer, submit: Submit, n_ctx: int) -> bool:
    """Whether an answer that reaches `submit.max_tokens` filled the context, rather than the caller's limit."""
    room = n_ctx - len(submit.prompt)
    return request.max_tokens is None or request.max_tokens > room


def _delivered(request: Infer, vocabulary: Vocabulary, max_tokens: int) -> tuple[int, ...]:
    if request.resume is None:
        return ()
    num_delivered = len(request.resume.delivered) // TOKEN_BYTES
    if num_delivered > max_tokens:
        raise InvalidRequest(
            f"{num_delivered} tokens were delivered, of an answer of at most {max_tokens}", field="resume.delivered"
        )
    ids = unpack_tokens(request.resume.delivered)
    vocabulary.check_ids(ids)
    return tuple(ids)


def _overflow(num_tokens: int, n_ctx: int) -> ContextOverflow:
    return ContextOverflow(
        f"the prompt has {num_tokens} tokens and the model's n_ctx is {n_ctx}; shorten it or load with a larger n_ctx",
        prompt_tokens=num_tokens,
        n_ctx=n_ctx,
    )


def _adapters(request: Infer) -> tuple[AdapterUse, ...] | None:
    """The set to use; None takes the attached one. Tokens that were delivered were made under the set of `accepted`."""
    if request.resume is not None and request.resume.delivered:
        return tuple(request.resume.adapters)
    return None if request.adapters is None else tuple(request.adapters)


class Pace:
    """How long requests have taken lately: for honest `retry_after_s`."""

    def __init__(self) -> None:
        self._request_s = 1.0

    def observe(self, duration_s: float) -> None:
        """A request took `duration_s` from arrival to end, without its time in the queue."""
        self._request_s += _DURATION_WEIGHT * (duration_s - self._request_s)

    def queue_full(self, num_active: int, num_slots: int) -> QueueFull:
        """The refusal of one request too many."""
        retry_after_s = round(min(30.0, max(0.1, self._request_s / max(1, num_slots))), 2)
        return QueueFull(
            f"{num_active} requests are queued or running, which is the bound of this model; try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )
