"""Every message kind and every body, from erllama_host.protocol: the tables of internals/messages.md."""

import re
import types
from typing import Any, Union, get_args, get_origin

import msgspec

from erllama_host.protocol.kinds import EVENT_KINDS, HOST_KINDS, LINK_KINDS, MODEL_KINDS, Kind

_PLAIN = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    bytes: "binary",
    type(None): "nil",
    Any: "anything",
}


def kinds() -> str:
    """What each kind carries and what answers it."""
    parts = [
        _requests("To the host", "The envelope's `model` is empty; the controller answers.", HOST_KINDS),
        _requests(
            "To a model", "The envelope's `model` names it; the controller passes the body on unread.", MODEL_KINDS
        ),
        _plain("Events", "Beside `reply`, whose body is the one in the column *answer*.", EVENT_KINDS),
        _plain(
            "Between worker and controller", "`w.…` from the worker, `c.…` to it; refused from clients.", LINK_KINDS
        ),
    ]
    return "\n".join(parts)


def bodies() -> str:
    """Every body and every type inside one, field by field."""
    return "\n".join(_body(body) for body in _all_bodies())


def _requests(title: str, note: str, table: dict[str, Kind]) -> str:
    lines = [
        f"### {title}",
        "",
        note,
        "",
        "| kind | body | answer | events before it | role |",
        "|---|---|---|---|---|",
    ]
    for name, kind in table.items():
        answer = _link(kind.answer) if kind.answer is not None else "—"
        events = ", ".join(f"`{event}`" for event in kind.events) or "—"
        lines.append(f"| `{name}` | {_link(kind.body)} | {answer} | {events} | {kind.role} |")
    return "\n".join([*lines, ""])


def _plain(title: str, note: str, table: dict[str, type[Any]]) -> str:
    lines = [f"### {title}", "", note, "", "| kind | body |", "|---|---|"]
    lines += [f"| `{name}` | {_link(body)} |" for name, body in table.items()]
    return "\n".join([*lines, ""])


def _body(body: type[msgspec.Struct]) -> str:
    fields = msgspec.structs.fields(body)
    shape = "An array, in this order. " if body.__struct_config__.array_like else ""
    lines = [f"### {body.__name__}", "", shape + _summary(body), ""]
    if not fields:
        return "\n".join([*lines, "No fields.", ""])
    meanings = _meanings(body)
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        meaning = meanings.get(field.name, "")
        lines.append(f"| `{field.name}` | {_type(field.type)} | {_default(field)} | {meaning} |")
    return "\n".join([*lines, ""])


def _all_bodies() -> list[type[msgspec.Struct]]:
    """Bodies in the order of the tables, each followed by what it contains for the first time."""
    found: list[type[msgspec.Struct]] = []
    requests = [part for kind in (HOST_KINDS | MODEL_KINDS).values() for part in (kind.body, kind.answer)]
    for body in [*requests, *EVENT_KINDS.values(), *LINK_KINDS.values()]:
        _collect(body, found)
    return found


def _collect(declared: Any, found: list[type[msgspec.Struct]]) -> None:
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        if declared not in found:
            found.append(declared)
            for field in msgspec.structs.fields(declared):
                _collect(field.type, found)
        return
    for inner in get_args(declared):
        _collect(inner, found)


def _type(declared: Any) -> str:
    if declared in _PLAIN:
        return _PLAIN[declared]
    origin, inner = get_origin(declared), get_args(declared)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(option) for option in inner)
    if origin is list:
        return f"array of {_type(inner[0])}"
    if origin is tuple:
        return "array [" + ", ".join(_type(option) for option in inner) + "]"
    if origin is dict:
        return f"map of {_type(inner[0])} to {_type(inner[1])}"
    return _link(declared)


def _default(field: Any) -> str:
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "all defaults"
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return str(value).lower()
    return "empty" if value in ("", b"", [], {}) else f"`{value}`"


def _meanings(body: type[msgspec.Struct]) -> dict[str, str]:
    """What the docstring's attribute list says of fields; many need no words beside their name."""
    text = " ".join((body.__doc__ or "").partition("Attributes:")[2].split())
    known = "|".join(sorted((field.name for field in msgspec.structs.fields(body)), key=len, reverse=True))
    label = re.compile(rf"(?:(?<=^)|(?<=\s))((?:{known})(?:, (?:{known}))*): ")
    matches = list(label.finditer(text))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    found = {}
    for match, end in zip(matches, ends, strict=False):
        meaning = text[match.end() : end].strip().rstrip(".;")
        for name in match.group(1).split(", "):
            found[name] = meaning.replace("|", "\\|").replace("None ", "nil ")
    return found


def _summary(body: type[msgspec.Struct]) -> str:
    return " ".join((body.__doc__ or "").partition("Attributes:")[0].split())


def _link(body: type[Any]) -> str:
    return f"[{body.__name__}](#{body.__name__.lower()})"
