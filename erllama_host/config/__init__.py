"""Configuration: frozen objects, parsed once per process; a bad value names its key."""

from erllama_host.config.host import CacheConfig, Config, HostSection, RemoteSection, TierConfig
from erllama_host.config.load import (
    BUILT_IN_TIERS,
    check_model_config,
    load_config,
    parse_config,
    parse_model_config,
    resolve_tier,
)
from erllama_host.config.model import (
    POLICY_KEYS_WITHOUT_EFFECT,
    ModelConfig,
    ModelSpec,
    PolicyConfig,
    SpecAdapter,
    StubConfig,
)
from erllama_host.config.paths import Paths, find_paths, private_directory
from erllama_host.config.specs import longest_stop_s, read_specs

__all__ = [
    "BUILT_IN_TIERS",
    "POLICY_KEYS_WITHOUT_EFFECT",
    "CacheConfig",
    "Config",
    "HostSection",
    "ModelConfig",
    "ModelSpec",
    "Paths",
    "PolicyConfig",
    "RemoteSection",
    "SpecAdapter",
    "StubConfig",
    "TierConfig",
    "check_model_config",
    "find_paths",
    "load_config",
    "longest_stop_s",
    "parse_config",
    "parse_model_config",
    "private_directory",
    "read_specs",
    "resolve_tier",
]
