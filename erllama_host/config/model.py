"""Options of one model: `[models.<id>]` in erllama.toml and the keywords of `load_model`. Parsed once, frozen.

The worker reads them from `$ERLLAMA_RUN/models/<id>.json` (a `ModelSpec`), so that a respawn needs neither controller
nor daemon.
"""

from typing import Any, Literal

import msgspec

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")
"""What `type_k` and `type_v` may be."""

STOP_MARGIN_S = 5.0
"""What a worker may take on its way out besides its save: the end of a step, of short requests, of the process."""


class _Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Base of config sections: unknown keys are errors."""


class PolicyConfig(_Section, frozen=True):
    """When rows are saved.

    Attributes:
        enabled: False keeps this model out of the cache.
        min_tokens: shorter rows are not worth a file.
        cold_min_tokens, cold_max_tokens: prompts outside of these are not saved while prefilling.
        continued_interval, boundary_trim_tokens, boundary_align_tokens: keys of the Erlang library; accepted with a warning,
            since blocks replace them.
    """

    enabled: bool = True
    min_tokens: int = 32
    cold_min_tokens: int = 32
    cold_max_tokens: int = 1 << 20
    continued_interval: int | None = None
    boundary_trim_tokens: int | None = None
    boundary_align_tokens: int | None = None


POLICY_KEYS_WITHOUT_EFFECT = ("continued_interval", "boundary_trim_tokens", "boundary_align_tokens")


class StubConfig(_Section, frozen=True):
    """Behaviour of `backend = "stub"`: deterministic tokens without a GGUF, and mishaps on request.

    Attributes:
        salt: changes every answer.
        token_ms, prefill_ms_per_token, load_ms: how slow it pretends to be.
        emit: text to answer with instead of derived tokens.
        crash_after_tokens, hang_after_tokens: die with SIGKILL, or stop making progress, after so many tokens of one life.
        crash_on_text: die when a prompt, or a text to embed, contains it.
        crash_once: a file to create at the first crash; while it exists, none follows.
        fail_load: fail to load, with this message. hang_in_load: never get ready.
        kind: which KV behaviour to imitate.
    """

    salt: int = 0
    token_ms: float = 0.0
    prefill_ms_per_token: float = 0.0
    load_ms: float = 0.0
    emit: str | None = None
    crash_after_tokens: int | None = None
    hang_after_tokens: int | None = None
    crash_on_text: str | None = None
    crash_once: str | None = None
    fail_load: str | None = None
    hang_in_load: bool = False
    kind: Literal["attention", "recurrent", "hybrid", "uncached"] = "attention"


class ModelConfig(_Section, frozen=True):
    """Every option of a load; all but `path` have defaults.

    Attributes:
        path: the GGUF file.
        backend: `llama`, or `stub` for tests of your own programs.
        fingerprint: 64 hex digits, for fingerprint_mode `fast_unsafe`.
        fingerprint_mode: `safe` (sha256 of the file, remembered by path, inode, size and mtime), `gguf_chunked` (header, samples),
            `fast_unsafe` (trusts `fingerprint`).
        tier: how durable the model's rows must become. tier_srv: a table `[cache.tiers.<name>]`; its kind and `tier` must agree.
        quant_type, ctx_params_hash: derived when absent.
        n_gpu_layers: None is all, when the build has a GPU backend.
        main_gpu: index of the GPU for what is not split. split_mode: how layers spread over several GPUs.
        tensor_split: share of each GPU.
        use_mmap: map the file instead of reading it. use_mlock: keep it from being swapped out.
        n_ctx: most tokens of one request; None is min(trained, 8192). n_cells: KV cells of the model; None is 2 × n_ctx.
        n_batch, n_ubatch: most tokens of one step, and of one of its parts.
        n_threads, n_threads_batch: threads for one token at a time, and for prompts; None is one per core.
        n_seq_max: requests that run at a time. retained_cells_max: cells of finished requests kept while others run.
        flash_attn: False means no cache (and `model_info` says so).
        type_k, type_v: KV types, e.g. `f16`, `q8_0`.
        rope_freq_base, rope_freq_scale, rope_scaling_type: position encoding; None is the model's own.
        yarn_ext_factor, yarn_attn_factor, yarn_beta_fast, yarn_beta_slow, yarn_orig_ctx: of rope_scaling_type `yarn`.
        swa_full: keep the whole KV of sliding-window models, so that their prefixes can be shared.
        embeddings: make embeddings possible; None decides by the model. pooling: how token vectors become one.
        thinking_markers, tool_call_markers: [open, close]; None takes what the template shows.
        prompt_lookup: speculate with n-grams of the prompt; 0 is off, else the most draft tokens per step.
        max_queue: requests waiting at most. keep_alive_s: unload after so long idle; None is never.
        stream_interval_ms: tokens within it leave as one event, the first at once.
        priority: of loads at start, and who is let go last under memory pressure.
        lazy: load at the first request instead of at start.
        load_timeout_s: a load that takes longer is a hang.
        hang_timeout_s: a step of the engine that takes longer, and ten times longer than it should, is a hang.
        max_restarts, within_s: more restarts than that in so many seconds, and the model is given up.
        cpu_affinity, nice, gpu_ids: limits of the process.
        address_space_bytes: bound of its virtual memory: itself, the model's file, the context, and what a GPU's libraries reserve.
        evict_save_timeout_s: bound of synchronous saves.
    """

    path: str = ""
    backend: Literal["llama", "stub"] = "llama"
    fingerprint: str | None = None
    fingerprint_mode: Literal["safe", "gguf_chunked", "fast_unsafe"] = "safe"
    tier: Literal["ram", "ram_file", "disk"] | None = None
    tier_srv: str | None = None
    quant_type: str | None = None
    ctx_params_hash: str | None = None
    policy: PolicyConfig = PolicyConfig()
    n_gpu_layers: int | None = None
    main_gpu: int = 0
    split_mode: Literal["none", "layer", "row"] = "layer"
    tensor_split: list[float] | None = None
    use_mmap: bool = True
    use_mlock: bool = False
    n_ctx: int | None = None
    n_cells: int | None = None
    n_seq_max: int = 4
    retained_cells_max: int = 2048
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    flash_attn: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    rope_scaling_type: Literal["none", "linear", "yarn", "longrope"] | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    yarn_orig_ctx: int | None = None
    swa_full: bool = True
    embeddings: bool | None = None
    pooling: Literal["none", "mean", "cls", "last"] | None = None
    thinking_markers: list[str] | None = None
    tool_call_markers: list[str] | None = None
    prompt_lookup: int = 0
    max_queue: int = 256
    stream_interval_ms: float = 40.0
    keep_alive_s: float | None = None
    priority: int = 0
    load_timeout_s: float = 600.0
    hang_timeout_s: float = 60.0
    max_restarts: int = 20
    within_s: float = 60.0
    cpu_affinity: list[int] | None = None
    nice: int = 0
    gpu_ids: list[int] | None = None
    address_space_bytes: int | None = None
    evict_save_timeout_s: float = 30.0
    lazy: bool = False
    stub: StubConfig = StubConfig()

    @property
    def stop_s(self) -> float:
        """How long a worker may take to end once it is told to."""
        return self.evict_save_timeout_s + STOP_MARGIN_S


class SpecAdapter(_Section, frozen=True):
    """An adapter that must be attached again after a respawn."""

    handle: str
    path: str
    scale: float = 1.0


class ModelSpec(_Section, frozen=True):
    """What a worker needs to run: written by the controller before it adds the watcher, read by nobody but the worker.

    Attributes:
        load_id: changes with every load, so that a report of an earlier one is not taken for this one's.
        cache: `CacheConfig` as plain data, and `tier`, `tier_srv` of the model resolved against it.
    """

    model_id: str
    load_id: str
    config: ModelConfig
    adapters: list[SpecAdapter] = []
    cache: dict[str, Any] = {}
    home: str = ""
