"""Limits of the process, from the model's configuration; set before llama.cpp is loaded, since it reads some of them then."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ConfigError
from erllama_host.process import set_oom_score

T = TypeVar("T")

OOM_SCORE = 500
"""Under memory pressure the kernel takes a worker before the controller or the cache daemon: it comes back warm."""

THREADS_BYTES = 64 << 20
"""Address space of the threads that are yet to come: eight stacks of 8 MiB."""


def apply_limits(config: ModelConfig) -> None:
    """CPUs, niceness, GPUs, address space, out-of-memory order.

    Raises:
        ConfigError: the system refuses one, or the address space cannot be enough; names the key.
    """
    set_oom_score(OOM_SCORE)
    if config.gpu_ids is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.gpu_ids))
    if config.cpu_affinity is not None and hasattr(os, "sched_setaffinity"):
        _try("cpu_affinity", lambda cpus: os.sched_setaffinity(0, cpus), config.cpu_affinity)
    if config.nice:
        _try("nice", os.nice, config.nice)
    if config.address_space_bytes is not None:
        _check_address_space(config, config.address_space_bytes)
        limit = (config.address_space_bytes, config.address_space_bytes)
        _try("address_space_bytes", lambda pair: resource.setrlimit(resource.RLIMIT_AS, pair), limit)


def _check_address_space(config: ModelConfig, limit_bytes: int) -> None:
    """Refuse a limit that cannot be enough, while there still is memory to say so. What fits here may fail later: the context and
    the libraries of a GPU come on top, and are not known yet."""
    process_bytes = psutil.Process().memory_info().vms + THREADS_BYTES
    file = Path(config.path)
    model_bytes = file.stat().st_size if file.is_file() else 0
    if process_bytes + model_bytes > limit_bytes:
        raise ConfigError(
            f"out of address space: the process takes {process_bytes} bytes and the model's file {model_bytes}, its context comes "
            f"on top; raise address_space_bytes (now {limit_bytes})",
            key="address_space_bytes",
        )


def _try(key: str, setter: Callable[[T], object], value: T) -> None:
    try:
        setter(value)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{key}: the system refuses {value}: {error}", key=key) from error
