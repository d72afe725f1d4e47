"""What the service thread and the engine thread say to each other: values through two queues, nothing shared. Pure.

    service ── Command ──▶ engine      submit, cancel, hold, call, stop
    service ◀── Report ──  engine      accepted, tokens, done, failed, answer

The engine never sees a socket, a client or a message; the service never sees the llama context. Times are `time.monotonic()`.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from erllama_host.errors import ErllamaError
from erllama_host.protocol.inference import AdapterUse, CacheReport, Part, SamplingParams, Stats, TokenLogprobs

HANDOVER = "handover"
"""Cancel reason of requests that are cut off because this process leaves for a successor (SIGTERM without `c.park`).

Their clients are told nothing: they find the successor and go on there. Those of a parked worker are told `unload` or `shutdown`.
"""

# ---- service → engine --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    """Run one request. Checked and tokenised: only what needs the engine can still be wrong with it.

    Attributes:
        prompt: token ids, at least one, prompt + max_tokens within n_ctx.
        delivered: on a resumption, the answer so far; it is fed through sampler and text filters, and counts against max_tokens.
        max_tokens: of the whole answer, `delivered` included.
        adapters: None takes the model's attached set at admission.
        deadline: when to give up; None is never. arrived_at: for `queue_ms`.
        alone: run with no other request beside it (it was there at two deaths of a worker).
    """

    ref: str
    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    arrived_at: float
    stop: tuple[str, ...] = ()
    priority: int = 0
    deadline: float | None = None
    parent_key: bytes | None = None
    session_id: str | None = None
    adapters: tuple[AdapterUse, ...] | None = None
    pin_prefix: int = 0
    ignore_eos: bool = False
    delivered: tuple[int, ...] = ()
    attempt: int = 0
    alone: bool = False


@dataclass(frozen=True)
class CancelRequest:
    """End a request at the next boundary, wherever it is; unknown refs are ignored."""

    ref: str
    reason: str


@dataclass(frozen=True)
class Hold:
    """Leave the request out of ticks (`held`), or take it in again: its client has no credit left, or has some again."""

    ref: str
    held: bool


@dataclass(frozen=True)
class EngineCall:
    """A call that needs the engine thread; answered by one `Answer` with the same `call_id`.

    `name` is a kind of kinds.py (`embed`, `load_adapter`, `unload_adapter`, `set_adapter_scale`, `list_adapters`, `evict`,
    `shutdown`, `cached_prefix_len`, `end_session`, `fork`, `verify`); `body` its decoded body, with ids instead of texts.
    """

    call_id: int
    name: str
    body: Any
    deadline: float | None = None


@dataclass(frozen=True)
class EmbedTexts:
    """Body of the engine's `embed`: token ids of every input, packed, all in range."""

    inputs: list[bytes]
    normalize: bool = True


@dataclass(frozen=True)
class Park:
    """Admit no more; let running requests go on for `finish_s`, cut off the rest with `reason`, save within `save_s`; then
    `Answer`.
    """

    call_id: int
    reason: str
    finish_s: float
    save_s: float


@dataclass(frozen=True)
class Stop:
    """Leave the loop as soon as possible (after a `Park`, or at once on a second signal)."""


Command: TypeAlias = Submit | CancelRequest | Hold | EngineCall | Park | Stop

# ---- engine → service --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Admitted:
    """The request left the queue; `adapters` is its snapshot. `alone`: it runs with no other beside it."""

    ref: str
    adapters: tuple[AdapterUse, ...]
    alone: bool = False


@dataclass(frozen=True)
class Generated:
    """Tokens `[first_index, first_index + len(ids))` of an answer and the text they completed."""

    ref: str
    first_index: int
    ids: tuple[int, ...]
    parts: tuple[Part, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Finished:
    """A request ended without an error. `parts`: text that was held back until now."""

    ref: str
    finish_reason: str
    generated: tuple[int, ...]
    parts: tuple[Part, ...]
    finish_key: bytes | None
    finish_len: int
    cache: CacheReport
    stats: Stats
    cancel_reason: str | None = None


@dataclass(frozen=True)
class Failed:
    """A request ended with an error."""

    ref: str
    error: ErllamaError


@dataclass(frozen=True)
class Answer:
    """Answer to an `EngineCall` or `Park`: `result` is the reply body, or `error` is set."""

    call_id: int
    result: Any = None
    error: ErllamaError | None = None


Report: TypeAlias = Admitted | Generated | Finished | Failed | Answer


@dataclass(frozen=True, slots=True)
class Work:
    """The piece of work that the engine is at: begun at `since` (monotonic), a hang if it takes longer than `limit_s`."""

    since: float
    limit_s: float


@dataclass(frozen=True)
class EngineSnapshot:
    """What the engine is doing; a new one is published by reference after every tick, so that reading needs no lock.

    Attributes:
        phase: `idle`, `prefilling`, `generating`. cache_refused: why the cache daemon does not take this model; empty if it does.
    """

    phase: str = "idle"
    running: int = 0
    queued: int = 0
    used_cells: int = 0
    live_cells: int = 0
    tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    last_cache_hit: str | None = None
    cache_refused: str = ""
    counters: dict[str, float] = field(default_factory=dict)
