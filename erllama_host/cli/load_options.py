"""`--option key=value` of a load → the mapping that the host checks. Pure."""

import json
import types
import typing
from collections.abc import Iterable
from typing import Any

import msgspec

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ConfigError


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """The options as nested tables: `policy.enabled=false` becomes `{"policy": {"enabled": False}}`.

    A value is JSON where it can be (`4096`, `true`, `[0, 1]`), else text; for keys that hold text it is always text. Whether
    key and value make sense is for the host to say, which names the key.

    Raises:
        ConfigError: an option without `=`, or a key given twice.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--option {option!r} must have the form KEY=VALUE, for example n_ctx=4096", key=option)
        *tables, name = key.split(".")
        table = found
        for part in tables:
            table = table.setdefault(part, {})
        if name in table:
            raise ConfigError(f"--option {key} is given twice", key=key)
        table[name] = _value(key.split("."), text)
    return found


def _value(path: list[str], text: str) -> Any:
    if _is_text(path):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_text(path: list[str]) -> bool:
    """Whether the key at `path` of ModelConfig is declared as text (or text or None)."""
    struct: Any = ModelConfig
    for depth, name in enumerate(path):
        declared = {field.name: field.type for field in msgspec.structs.fields(struct)}.get(name)
        if depth == len(path) - 1:
            return declared is str or (_is_union(declared) and str in typing.get_args(declared))
        if not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
            return False
        struct = declared
    return False


def _is_union(declared: Any) -> bool:
    return isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union
