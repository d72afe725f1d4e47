"""Bodies of calls: one request, one `reply` (or `error`). Pure.

Calls to the host (the first half, to `CacheAnswer`) are answered by the controller, calls to a model by its worker. Which is
which, what they answer and which role may send them stands in `kinds.py`.
"""

from typing import Any

import msgspec

from erllama_host.protocol.inference import ChatRequest


class _Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Base of requests: unknown fields are refused, so that a typo is an error and not a silent default."""


class _Answer(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """Base of replies: unknown fields are ignored, so that a newer host can say more."""


class Nothing(_Body, frozen=True):
    """Body of calls that need none."""


class Ok(_Answer, frozen=True):
    """Reply of calls that answer nothing else."""


class HostHello(_Answer, frozen=True):
    """Who answers at the endpoint.

    Attributes:
        version: of the package. protocol: PROTOCOL_VERSION. instance: 12 hex digits naming this host's directories.
        pid: of the controller. started_at: wall clock, seconds. home, run_dir: its directories. draining: going down.
        components: versions of what it is built on (llama.cpp build once a worker has told it, pyzmq, circus).
    """

    version: str
    protocol: int
    instance: str
    pid: int
    incarnation: str = ""
    started_at: float = 0.0
    home: str = ""
    run_dir: str = ""
    draining: bool = False
    cache_available: bool = False
    components: dict[str, str] = {}


class LoadModel(_Body, frozen=True):
    """Load a model. Answers with `progress` events, then `reply` (ModelInfo) when the worker is ready.

    Attributes:
        path: the GGUF; may be empty for `backend="stub"`.
        model_id: None lets the host make one.
        config: options of the load, keys as in `[models.<id>]` of erllama.toml.
        request_id: a retry with the same one never loads twice.
        wait: False answers as soon as the load has been started.
    """

    path: str = ""
    model_id: str | None = None
    config: dict[str, Any] = {}
    request_id: str = ""
    wait: bool = True


class LoadProgress(_Answer, frozen=True):
    """Event `progress` of a load. `phase`: `starting`, `weights`, `context`, `self_check`, `ready`; `fraction` in [0, 1]."""

    model_id: str
    phase: str
    fraction: float = 0.0
    loaded_bytes: int = 0
    total_bytes: int = 0


class AdapterInfo(_Answer, frozen=True):
    """A loaded adapter."""

    handle: str
    path: str = ""
    scale: float = 1.0
    sha256: str = ""


class ModelInfo(_Answer, frozen=True):
    """Everything known of one model; what its worker has not told yet has the default.

    Attributes:
        status: `idle`, `prefilling`, `generating`; around them `loading`, `restarting`, `stopping`, `failed`.
        kv_mode: `segments`, `snapshots`, `uncached`, with `kv_reason`.
        last_failure: why it died last; `last_log_lines`: its last words then.
        pending: requests queued or running. resident_bytes: RSS of the process. device_bytes: GPU memory where known.
    """

    model_id: str
    status: str = "loading"
    pid: int = 0
    restarts: int = 0
    backend: str = "llama"
    path: str = ""
    incarnation: str = ""
    architecture: str = ""
    description: str = ""
    quantisation: str = ""
    num_parameters: int = 0
    size_bytes: int = 0
    n_ctx: int = 0
    n_ctx_train: int = 0
    n_cells: int = 0
    n_seq_max: int = 0
    n_vocab: int = 0
    n_embd: int = 0
    fingerprint: str = ""
    tier: str = ""
    kv_mode: str = ""
    kv_reason: str = ""
    has_chat_template: bool = False
    adapters: list[AdapterInfo] = []
    resident_bytes: int = 0
    device_bytes: int = 0
    pending: int = 0
    queue_depth: int = 0
    used_cells: int = 0
    live_cells: int = 0
    tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    last_cache_hit: str | None = None
    cache_hits: int = 0
    cache_misses: int = 0
    uptime_s: float = 0.0
    idle_s: float = 0.0
    load_ms: float = 0.0
    last_failure: str | None = None
    last_log_lines: list[str] = []
    configured: bool = False
    components: dict[str, str] = {}


class ModelRef(_Body, frozen=True):
    """Names a model in a call to the host."""

    model_id: str


class Restart(_Body, frozen=True):
    """Restart a model's worker, also a failed one."""

    model_id: str
    wait: bool = True


class ModelList(_Answer, frozen=True):
    """Reply of `list_models`."""

    models: list[ModelInfo] = []


class WorkerPids(_Answer, frozen=True):
    """Reply of `models`: the supervisor's view, model id → pids of its worker."""

    pids: dict[str, list[int]] = {}


class Counters(_Answer, frozen=True):
    """Reply of `counters`: name → number. With the cache daemon away `cache_available` is 0 and only the host's part is there."""

    counters: dict[str, float] = {}


class Events(_Body, frozen=True):
    """Ask for events after `since`; with none there, wait up to `wait_ms` for one."""

    since: int = 0
    limit: int = 200
    wait_ms: int = 0


class Event(_Answer, frozen=True):
    """One entry of the bounded journal: a number that only grows, wall clock (s), name, model (or empty), fields."""

    seq: int
    at: float
    name: str
    model: str = ""
    fields: dict[str, Any] = {}


class EventList(_Answer, frozen=True):
    """Reply of `events`. `next` is the `since` of the following call."""

    events: list[Event] = []
    next: int = 0


class ProcessInfo(_Answer, frozen=True):
    """One process of the host. `role`: `circusd`, `controller`, `cache`, `model:<id>`."""

    role: str
    pid: int = 0
    status: str = ""
    restarts: int = 0
    uptime_s: float = 0.0
    resident_bytes: int = 0
    last_failure: str | None = None


class HostStatus(_Answer, frozen=True):
    """Reply of `host_status`."""

    hello: HostHello
    processes: list[ProcessInfo] = []
    models: list[ModelInfo] = []
    memory: dict[str, float] = {}


class Drain(_Body, frozen=True):
    """Stop admitting, let requests finish or save them, then answer; the caller ends the supervisor. For `erllama down`."""

    timeout_s: float = 30.0


class CacheCall(_Body, frozen=True):
    """A call that the controller hands on to the cache daemon: `op` and its arguments, see protocol/cache.py."""

    op: str
    arguments: dict[str, Any] = {}


class CacheAnswer(_Answer, frozen=True):
    """Reply of `cache`: whatever the operation answers."""

    result: dict[str, Any] = {}


class ModelStatus(_Answer, frozen=True):
    """Reply of `status`: `idle`, `prefilling`, `generating`, `loading`, `restarting`, `stopping`, `failed`."""

    status: str


class Tokenize(_Body, frozen=True):
    """The rule of prompts: `add_special` adds BOS as the model wants, `parse_special` reads `<|…|>` as special tokens."""

    text: str
    add_special: bool = True
    parse_special: bool = False


class TokenList(_Answer, frozen=True):
    """Token ids, packed."""

    tokens: bytes = b""


class Detokenize(_Body, frozen=True):
    """Packed ids → text."""

    tokens: bytes
    special: bool = False


class Text(_Answer, frozen=True):
    """Reply of `detokenize`."""

    text: str = ""


class ApplyTemplate(_Body, frozen=True):
    """Render a conversation by the model's template and tokenise it."""

    chat: ChatRequest


class Rendered(_Answer, frozen=True):
    """Reply of `apply_chat_template`."""

    tokens: bytes = b""
    text: str = ""


class Embed(_Body, frozen=True):
    """Embed several inputs at once: `tokens` (packed ids each) or `texts`, exactly one of the two."""

    tokens: list[bytes] | None = None
    texts: list[str] | None = None
    normalize: bool = True


class Vectors(_Answer, frozen=True):
    """Reply of `embed`: one little-endian f32 vector of `n_embd` per input."""

    vectors: list[bytes] = []
    n_embd: int = 0


class LoadAdapter(_Body, frozen=True):
    """Attach a LoRA GGUF; in force for later requests."""

    path: str
    scale: float = 1.0


class UnloadAdapter(_Body, frozen=True):
    """Detach; idempotent; freed after the last request that uses it."""

    handle: str


class SetAdapterScale(_Body, frozen=True):
    """Change the scale for later requests."""

    handle: str
    scale: float


class AdapterList(_Answer, frozen=True):
    """Reply of `list_adapters` and of the calls that change the set."""

    adapters: list[AdapterInfo] = []


class Evict(_Body, frozen=True):
    """Save everything live, then give the memory of the context back."""

    timeout_s: float | None = None


class Evicted(_Answer, frozen=True):
    """Reply of `evict`. `deferred`: requests were running; the context goes when the last of them ends."""

    freed_bytes: int = 0
    deferred: bool = False
    saved_tokens: int = 0


class Save(_Body, frozen=True):
    """Synchronous save of everything live; the model stays loaded."""

    timeout_s: float | None = None


class Saved(_Answer, frozen=True):
    """Reply of `shutdown`. `complete` is False when the time limit came first."""

    saved_tokens: int = 0
    complete: bool = True


class CachedPrefix(_Body, frozen=True):
    """How much of a prompt is cached?"""

    tokens: bytes


class Length(_Answer, frozen=True):
    """A number of tokens."""

    length: int = 0


class Session(_Body, frozen=True):
    """Names a session. For `fork`, `new_session_id` may name the copy."""

    session_id: str
    new_session_id: str | None = None


class SessionName(_Answer, frozen=True):
    """Reply of `fork`."""

    session_id: str


class Verify(_Body, frozen=True):
    """Would the model, greedily, have continued `tokens` with `draft`?"""

    tokens: bytes
    draft: bytes


class Verified(_Answer, frozen=True):
    """Reply of `verify`: how many draft tokens are the greedy choice, and the greedy token after them."""

    accepted: int = 0
    next_token: int | None = None


class Draft(_Body, frozen=True):
    """Propose `n` tokens after `tokens` by prompt lookup."""

    tokens: bytes
    n: int = 8
