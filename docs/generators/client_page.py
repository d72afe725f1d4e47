"""The Python client's reference, from its signatures and docstrings."""

import inspect
import re
from typing import Any

from erllama_host.client import Client, Completion, InferOptions, Model, Piece, Stream
from erllama_host.client.results import Prefilled, StreamStats
from erllama_host.protocol.calls import HostStatus, ModelInfo
from erllama_host.protocol.inference import CacheReport, SamplingParams

_HEAD = """# The Python client

`Client` works in threads; `AsyncClient` has the same methods, to be awaited. Errors are on their [own page](errors.md).

```python
from erllama_host import AsyncClient, Client
```

"""
_CLASSES: tuple[type[Any], ...] = (Client, Model, Stream)
_VALUES: tuple[type[Any], ...] = (
    InferOptions,
    SamplingParams,
    Piece,
    Completion,
    Prefilled,
    StreamStats,
    CacheReport,
    ModelInfo,
    HostStatus,
)


def page() -> str:
    """The whole page."""
    return _HEAD + "\n".join([*(_class(cls) for cls in _CLASSES), "## Values\n", *(_value(cls) for cls in _VALUES)])


def _class(cls: type[Any]) -> str:
    parts = [f"## `{cls.__name__}`\n", prose(cls.__doc__)]
    for name, member in vars(cls).items():
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        if isinstance(member, property):
            parts += [f"### `{cls.__name__}.{name}`\n", prose(member.fget.__doc__ if member.fget else "")]
        else:
            parts += [
                f"### `{cls.__name__}.{name}`\n",
                f"```python\n{signature(name, member)}\n```\n",
                prose(member.__doc__),
            ]
    return "\n".join(parts)


def _value(cls: type[Any]) -> str:
    return "\n".join((f"### `{cls.__name__}`\n", prose(cls.__doc__)))


def signature(name: str, function: Any) -> str:
    """`name(a, b=1) -> Result`, with short names of types."""
    found = inspect.signature(function)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    text = str(found.replace(parameters=parameters))
    text = re.sub(r"'([A-Za-z_.\[\], |]+)'", r"\1", text)
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w+)", r"\1", text)
    return re.sub(r"\bc\.", "", name + text)


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: sections become lists of their entries."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    out: list[str] = []
    in_section = False
    for line in lines:
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            out += ["", f"**{line.rstrip(':')}**", ""]
            in_section = True
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            out += _entries(line.strip())
        elif in_section and line.strip():
            out[-1] += " " + line.strip()
        else:
            in_section = in_section and not line
            out.append(line)
    return "\n".join(out).strip() + "\n"


def _entries(line: str) -> list[str]:
    """`name: what` as a list item; several on one line become several items."""
    pieces = re.split(r"(?<=\.) (?=[A-Za-z_]+(?:, [A-Za-z_]+)*: )", line)
    items = []
    for piece in pieces:
        names, colon, meaning = piece.partition(": ")
        named = colon and re.fullmatch(r"[A-Za-z_]+(?:, [A-Za-z_]+)*", names)
        items.append(f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}" if named else f"- {piece}")
    return items
