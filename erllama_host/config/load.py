"""Reading erllama.toml and load options; every complaint names the key."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from erllama_host.config.host import CacheConfig, Config
from erllama_host.config.model import KV_TYPES, ModelConfig
from erllama_host.config.ranges import (
    CACHE_RANGES,
    HOST_RANGES,
    MODEL_RANGES,
    POLICY_RANGES,
    TIER_RANGES,
    Ranges,
    complaints,
)
from erllama_host.errors import ConfigError, InvalidRequest
from erllama_host.ids import check_model_id

T = TypeVar("T")

BUILT_IN_TIERS = {"ram": "ram", "disk": "disk"}


def load_config(path: Path) -> Config:
    """Parse erllama.toml; a file that does not exist is all defaults. Relative paths in it are relative to its directory.

    Raises:
        ConfigError: unreadable, not TOML, or a key is unknown, mistyped or impossible.
    """
    if not path.exists():
        return Config()
    try:
        return _anchored(parse_config(path.read_text(encoding="utf-8"), str(path)), path.absolute().parent)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", key=str(path)) from error


def _anchored(config: Config, folder: Path) -> Config:
    """Paths made absolute: the processes of a host, and `keys` and `doctor` beside it, have working directories of their own."""

    def at(path: str | None) -> str | None:
        return str(folder / path) if path else path

    change = msgspec.structs.replace
    tiers = {name: change(tier, path=at(tier.path)) for name, tier in config.cache.tiers.items()}
    return change(
        config,
        host=change(
            config.host,
            memory_file=at(config.host.memory_file),
            model_dirs=[str(folder / each) for each in config.host.model_dirs],
        ),
        cache=change(config.cache, ram_path=at(config.cache.ram_path), tiers=tiers),
        remote=change(config.remote, keys_dir=at(config.remote.keys_dir)),
        models={name: change(model, path=at(model.path)) for name, model in config.models.items()},
    )


def parse_config(text: str, source: str = "erllama.toml") -> Config:
    """Parse the text of an erllama.toml; its paths stay as they are.

    Raises:
        ConfigError: as `load_config`.
    """
    import tomllib  # not in the workers, which import this module for their options alone

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}", key=source) from error
    config = _convert({key: _named(key, value, source) for key, value in data.items()}, Config, source)
    _check_host(config, source)
    for model_id, model in config.models.items():
        _check_configured_model(model_id, model, config.cache, source)
    return config


def parse_model_config(data: dict[str, Any], cache: CacheConfig) -> ModelConfig:
    """Options of one load, checked.

    Raises:
        ConfigError: names the key.
    """
    model = _convert(data, ModelConfig, "load_model")
    check_model_config(model, cache)
    return model


def check_model_config(model: ModelConfig, cache: CacheConfig) -> None:
    """Check what types cannot say.

    Raises:
        ConfigError: names the key.
    """
    if model.backend == "llama" and not model.path:
        raise _bad("path", "is missing: name the GGUF file to load")
    for key, what in complaints(model, MODEL_RANGES):
        raise _bad(key, what)
    for section, struct, ranges in (("policy", model.policy, POLICY_RANGES), ("stub", model.stub, {})):
        for key, what in complaints(struct, ranges):
            raise _bad(f"{section}.{key}", what)
    if model.n_ctx is not None and model.n_cells is not None and model.n_cells < model.n_ctx:
        raise _bad("n_cells", f"({model.n_cells}) must not be smaller than n_ctx ({model.n_ctx})")
    for key in ("thinking_markers", "tool_call_markers"):
        markers = getattr(model, key)
        if markers is not None and (len(markers) != 2 or not all(markers)):
            raise _bad(key, "must be [open, close]")
    for key in ("type_k", "type_v"):
        if getattr(model, key).lower() not in KV_TYPES:
            raise _bad(key, f"must be one of {', '.join(KV_TYPES)}, got {getattr(model, key)!r}")
    _check_fingerprint(model)
    resolve_tier(model, cache)


def resolve_tier(model: ModelConfig, cache: CacheConfig) -> str:
    """The name of the tier whose durability the model's rows must reach.

    Raises:
        ConfigError: `tier_srv` is not defined, or is of another kind than `tier`.
    """
    kinds = BUILT_IN_TIERS | {name: tier.kind for name, tier in cache.tiers.items()}
    if model.tier_srv is not None:
        kind = kinds.get(model.tier_srv)
        if kind is None:
            raise _bad("tier_srv", f"{model.tier_srv!r} is not defined; add a table [cache.tiers.{model.tier_srv}]")
        if model.tier is not None and model.tier != kind:
            raise _bad("tier_srv", f"{model.tier_srv!r} is of kind {kind!r}, which disagrees with tier {model.tier!r}")
        return model.tier_srv
    if model.tier is None:
        return cache.default_tier
    for name, kind in kinds.items():
        if kind == model.tier:
            return name
    raise _bad("tier", f"{model.tier!r} needs a table [cache.tiers.<name>] with kind = {model.tier!r} and a path")


def _named(section: str, value: Any, source: str) -> Any:
    """Parse the tables of `models` one by one, so that a complaint names the model and not just "some model"."""
    if section != "models" or not isinstance(value, dict):
        return value
    for model_id, table in value.items():
        _convert(table, ModelConfig, source, prefix=f"models.{model_id}")
    return value


def _convert(data: dict[str, Any], target: type[T], source: str, prefix: str = "") -> T:
    try:
        return msgspec.convert(data, target, strict=True)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        if "unknown field" in message:
            name = message.partition("`")[2].rstrip("`")
            key = f"{key}.{name}" if key else name
            message = "this key does not exist"
        key = ".".join(part for part in (prefix, key) if part)
        raise ConfigError(f"{source}: {key}: {message}", key=key) from error


def _check_host(config: Config, source: str) -> None:
    host, cache = config.host, config.cache
    sections: list[tuple[str, msgspec.Struct, Ranges]] = [("host", host, HOST_RANGES), ("cache", cache, CACHE_RANGES)]
    sections += [(f"cache.tiers.{name}", tier, TIER_RANGES) for name, tier in cache.tiers.items()]
    for section, struct, ranges in sections:
        for key, what in complaints(struct, ranges):
            raise ConfigError(f"{source}: {section}.{key} {what}", key=f"{section}.{key}")
    if not 0 < host.memory_low <= host.memory_high <= 1:
        raise ConfigError(
            f"{source}: host.memory_low and host.memory_high must satisfy 0 < low <= high <= 1", key="host.memory_high"
        )
    for name, tier in cache.tiers.items():
        if name in BUILT_IN_TIERS:
            raise ConfigError(
                f"{source}: cache.tiers.{name}: the name is taken by a built-in tier", key=f"cache.tiers.{name}"
            )
        if tier.kind != "ram" and not tier.path:
            raise ConfigError(f"{source}: cache.tiers.{name}.path is missing", key=f"cache.tiers.{name}.path")
    if cache.default_tier not in BUILT_IN_TIERS.keys() | cache.tiers.keys():
        raise ConfigError(f"{source}: cache.default_tier: no tier {cache.default_tier!r}", key="cache.default_tier")


def _check_configured_model(model_id: str, model: ModelConfig, cache: CacheConfig, source: str) -> None:
    try:
        check_model_id(model_id)
        check_model_config(model, cache)
    except InvalidRequest as error:
        raise ConfigError(f"{source}: models.{model_id}: {error.message}", key=f"models.{model_id}") from error
    except ConfigError as error:
        key = f"models.{model_id}.{error.details['key']}"
        raise ConfigError(f"{source}: models.{model_id}.{error.message}", key=key) from error


def _check_fingerprint(model: ModelConfig) -> None:
    text = model.fingerprint
    if text is not None and (len(text) != 64 or any(ch not in "0123456789abcdef" for ch in text)):
        raise _bad("fingerprint", "must be 64 lower-case hex digits (a sha256)")
    if model.fingerprint_mode == "fast_unsafe" and text is None:
        raise _bad("fingerprint", "is missing: fingerprint_mode 'fast_unsafe' trusts the one you give")


def _bad(key: str, what: str) -> ConfigError:
    return ConfigError(f"{key} {what}" if what.startswith(("must", "is", "(")) else f"{key}: {what}", key=key)
