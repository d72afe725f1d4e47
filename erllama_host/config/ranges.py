"""Ranges of the numbers in the configuration, which their types do not say. Pure.

A number out of range stops the start with its name. Let through, it would do harm that nobody traces back to it: with
`load_at_once = 0` no load ever begins, a log without backups is never cut, and JSON, which specs are written in, has no infinity.
"""

import math
from collections.abc import Iterator, Mapping

import msgspec

Range = tuple[float, float]
"""Least and greatest value."""
Ranges = Mapping[str, Range]

_MANY = 2.0**53
_LONG_S = 1e9
_INT32 = 2.0**31 - 1
_TIME_S = (0.0, _LONG_S)
_SOME_TIME_S = (0.001, _LONG_S)
_SOME_TOKENS = (1.0, _INT32)
_TOKENS = (0.0, _INT32)

HOST_RANGES: Ranges = {
    "heartbeat_timeout_s": (1.0, _LONG_S),
    "load_at_once": (1.0, 1000.0),
    "drain_s": _TIME_S,
    "memory_interval_s": (0.01, _LONG_S),
    "event_limit": (1.0, 1e6),
    "log_max_bytes": (0.0, _MANY),
    "log_backups": (1.0, 1000.0),  # without one circus goes on with the same file
    "max_clients_pending": (1.0, _INT32),  # 0 would be no bound at all
}

CACHE_RANGES: Ranges = {
    "ram_budget_bytes": (0.0, _MANY),
    "disk_budget_bytes": (0.0, _MANY),
    "block_tokens": (16.0, 4096.0),
    "session_resume_wait_ms": (0.0, 600_000.0),
    "call_timeout_ms": (1.0, 600_000.0),
    "lease_ttl_s": _SOME_TIME_S,
    "reservation_ttl_s": _SOME_TIME_S,
    "hold_s": _TIME_S,
}

TIER_RANGES: Ranges = {"budget_bytes": (0.0, _MANY)}

MODEL_RANGES: Ranges = {
    "n_ctx": _SOME_TOKENS,
    "n_cells": _SOME_TOKENS,
    "n_seq_max": (1.0, 200.0),
    "retained_cells_max": _TOKENS,
    "n_batch": _SOME_TOKENS,
    "n_ubatch": _SOME_TOKENS,
    "n_threads": (1.0, _INT32),
    "n_threads_batch": (1.0, _INT32),
    "main_gpu": (0.0, _INT32),
    "yarn_orig_ctx": _TOKENS,
    "prompt_lookup": (0.0, 32.0),
    "max_queue": (1.0, _INT32),
    "stream_interval_ms": (0.0, 60_000.0),
    "keep_alive_s": _TIME_S,
    "priority": (-_INT32, _INT32),
    "load_timeout_s": _SOME_TIME_S,
    "hang_timeout_s": (1.0, _LONG_S),
    "max_restarts": (0.0, _INT32),
    "within_s": _SOME_TIME_S,
    "nice": (-20.0, 19.0),
    "address_space_bytes": (1.0, _MANY),
    "evict_save_timeout_s": _TIME_S,
}

POLICY_RANGES: Ranges = {"min_tokens": _TOKENS, "cold_min_tokens": _TOKENS, "cold_max_tokens": _TOKENS}


def complaints(section: msgspec.Struct, ranges: Ranges) -> Iterator[tuple[str, str]]:
    """Keys of `section` whose values are out of range or not finite, each with what is wrong. None is always right."""
    for key in section.__struct_fields__:
        value = getattr(section, key)
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            yield key, f"must be finite, got {value}"
        elif key in ranges and value is not None and not ranges[key][0] <= value <= ranges[key][1]:
            yield key, f"must be {_words(*ranges[key])}, got {value}"


def _words(least: float, greatest: float) -> str:
    """A greatest value that is only there to keep nonsense out would not help anybody."""
    return f"at least {least:g}" if greatest >= 1e6 else f"from {least:g} to {greatest:g}"
