"""Sections of erllama.toml that concern the whole host. Parsed once per process, frozen."""

from typing import Literal

import msgspec

from erllama_host.config.model import ModelConfig

MIB = 1 << 20
GIB = 1 << 30


class _Section(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """Base of config sections: unknown keys are errors."""


class TierConfig(_Section, frozen=True):
    """A named tier: `[cache.tiers.<name>]`.

    Attributes:
        kind: `ram_file` (any tmpfs directory; survives stop and start) or `disk` (survives a reboot).
        path: its directory. budget_bytes: bound for all models together.
    """

    kind: Literal["ram", "ram_file", "disk"]
    path: str | None = None
    budget_bytes: int = 8 * GIB


class CacheConfig(_Section, frozen=True):
    """`[cache]`: the shared KV cache.

    Attributes:
        ram_budget_bytes: of the built-in tier `ram`; None is a quarter of what its filesystem has free at start, 8 GiB at most.
        ram_path: directory of tier `ram`; None is /dev/shm, or the temp directory where that is missing or too small.
        disk_budget_bytes: of the built-in tier `disk`, under `$ERLLAMA_HOME/kv`.
        default_tier: of models that name none.
        block_tokens: tokens of one block. Changing it makes earlier segments useless.
        session_resume_wait_ms: how long a lookup by `parent_key` waits for a save in flight.
        call_timeout_ms: a daemon that has not answered by then is a miss.
        lease_ttl_s, reservation_ttl_s: last resort: what a reader, or a writer, has not given back by then is taken back.
        hold_s: how long the leases of a dead worker hold.
    """

    ram_budget_bytes: int | None = None
    ram_path: str | None = None
    disk_budget_bytes: int = 16 * GIB
    default_tier: str = "ram"
    block_tokens: int = 256
    session_resume_wait_ms: int = 500
    call_timeout_ms: int = 250
    lease_ttl_s: float = 60.0
    reservation_ttl_s: float = 30.0
    hold_s: float = 30.0
    tiers: dict[str, TierConfig] = {}


class HostSection(_Section, frozen=True):
    """`[host]`: the controller and supervision.

    Attributes:
        heartbeat_timeout_s: a process that has not been heard of for so long is stopped for good and started anew.
        load_at_once: models loading at a time. drain_s: how long `down` lets requests finish.
        memory_high, memory_low: shares of memory in use: above high things are let go until below low.
        memory_interval_s: how often memory is looked at.
        memory_file: read memory in use from this file instead of the kernel, for tests.
        log_level: what the processes log: this and worse.
        model_dirs: where remote clients may load from (none: nowhere).
        event_limit: entries of the event journal kept. log_max_bytes, log_backups: rotation of each process's log.
        max_clients_pending: replies a slow reader may leave unread before messages to it are dropped (and healed by resume).
    """

    heartbeat_timeout_s: float = 15.0
    load_at_once: int = 2
    drain_s: float = 20.0
    memory_high: float = 0.92
    memory_low: float = 0.85
    memory_interval_s: float = 2.0
    memory_file: str | None = None
    model_dirs: list[str] = []
    event_limit: int = 2000
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_max_bytes: int = 16 * MIB
    log_backups: int = 3
    max_clients_pending: int = 20_000


class RemoteSection(_Section, frozen=True):
    """`[remote]`: tcp with CURVE, off without `listen`.

    Attributes:
        listen: e.g. `tcp://127.0.0.1:7700`. keys_dir: server key pair and the clients' public keys; None is `$ERLLAMA_HOME/keys`.
    """

    listen: str | None = None
    keys_dir: str | None = None


class Config(_Section, frozen=True):
    """The whole of erllama.toml."""

    host: HostSection = HostSection()
    cache: CacheConfig = CacheConfig()
    remote: RemoteSection = RemoteSection()
    models: dict[str, ModelConfig] = {}
