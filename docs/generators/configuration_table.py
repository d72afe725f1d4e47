"""Every key of erllama.toml, from the types and docstrings of erllama_host.config."""

import re
from typing import Any, Literal, get_args, get_origin

import msgspec

from erllama_host.config import (
    CacheConfig,
    HostSection,
    ModelConfig,
    PolicyConfig,
    RemoteSection,
    StubConfig,
    TierConfig,
)

SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("[host]", HostSection),
    ("[cache]", CacheConfig),
    ("[cache.tiers.<name>]", TierConfig),
    ("[remote]", RemoteSection),
    ("[models.<id>]", ModelConfig),
    ("[models.<id>.policy]", PolicyConfig),
    ("[models.<id>.stub]", StubConfig),
)
_NESTED = ("tiers", "policy", "stub")
_SIZE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


def tables() -> str:
    """One table per section."""
    parts = []
    for title, section in SECTIONS:
        parts += [f"### `{title}`", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        meanings = meanings_of(section)
        parts += [
            f"| `{field.name}` | {type_text(field.type)} | {default_text(field)} | {meanings[field.name]} |"
            for field in msgspec.structs.fields(section)
            if field.name not in _NESTED
        ]
        parts.append("")
    return "\n".join(parts)


def meanings_of(section: type[msgspec.Struct]) -> dict[str, str]:
    """What the docstring says of each key.

    Raises:
        KeyError: a key is not explained.
    """
    names = [field.name for field in msgspec.structs.fields(section) if field.name not in _NESTED]
    text = " ".join((section.__doc__ or "").split())
    known = "|".join(sorted(names, key=len, reverse=True))
    label = re.compile(rf"(?:(?<=^)|(?<=\s))((?:{known})(?:, (?:{known}))*): ")
    found: dict[str, str] = {}
    matches = list(label.finditer(text))
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        meaning = text[match.end() : following.start() if following else len(text)].strip()
        for name in match.group(1).split(", "):
            found[name] = _cell(meaning)
    missing = [name for name in names if name not in found]
    if missing:
        raise KeyError(f"{section.__name__} does not explain {', '.join(missing)}")
    return found


def type_text(declared: Any) -> str:
    """A type as a person writes it in TOML."""
    options = [option for option in get_args(declared) if option is not type(None)]
    if get_origin(declared) is Literal:
        return " · ".join(f"`{option}`" for option in get_args(declared))
    if get_origin(declared) is list:
        return f"list of {type_text(options[0])}"
    if options:
        return " or ".join(type_text(option) for option in options)
    return {bool: "true, false", int: "integer", float: "number", str: "text"}[declared]


def default_text(field: Any) -> str:
    """The default; a dash where the key must be given, "none" for an absent value."""
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{field.default_factory()}`"
    value = field.default
    if value is msgspec.NODEFAULT:
        return "—"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.name.endswith("_bytes"):
        for size, unit in _SIZE_UNITS:
            if value % size == 0:
                return f"{value // size} {unit}"
    return f"`{value}`"


def _cell(text: str) -> str:
    """Text for a cell: no bars, no stop at the end, and TOML's word for an absent value."""
    return text.rstrip(".; ").replace("|", "\\|").replace("None ", "none ")
