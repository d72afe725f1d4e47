"""Limits of the process, from the model's configuration; set before llama.cpp is loaded, since it reads some of them then."""

import os
import resource
from collections.abc import Callable
from typing import TypeVar

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ConfigError
from erllama_host.process import set_oom_score

T = TypeVar("T")

OOM_SCORE = 500
"""Under memory pressure the kernel takes a worker before the controller or the cache daemon: it comes back warm."""


def apply_limits(config: ModelConfig) -> None:
    """CPUs, niceness, GPUs, address space, out-of-memory order.

    Raises:
        ConfigError: the system refuses one; names the key.
    """
    set_oom_score(OOM_SCORE)
    if config.gpu_ids is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.gpu_ids))
    if config.cpu_affinity is not None and hasattr(os, "sched_setaffinity"):
        _try("cpu_affinity", lambda cpus: os.sched_setaffinity(0, cpus), config.cpu_affinity)
    if config.nice:
        _try("nice", os.nice, config.nice)
    if config.address_space_bytes is not None:
        limit = (config.address_space_bytes, config.address_space_bytes)
        _try("address_space_bytes", lambda pair: resource.setrlimit(resource.RLIMIT_AS, pair), limit)


def _try(key: str, setter: Callable[[T], object], value: T) -> None:
    try:
        setter(value)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{key}: the system refuses {value}: {error}", key=key) from error
