"""Which packages an installation pulls in, from requirement lines. Pure."""

import re
from collections.abc import Callable, Iterable

_LINE = re.compile(r"^\s*(?P<name>[A-Za-z0-9._-]+)\s*(\[(?P<extras>[^\]]*)\])?[^;]*(;(?P<marker>.*))?$")
_EXTRA = re.compile(r"extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"]")


def closure(package: str, extra: str, requirements_of: Callable[[str], Iterable[str]]) -> list[str]:
    """`package` and everything it needs with `extra`, sorted.

    Markers other than `extra` are taken to hold: a package that this platform does not need is not installed, and counts nothing.
    """
    wanted = {(_normal(package), extra)}
    waiting = list(wanted)
    while waiting:
        name, of_extra = waiting.pop()
        for line in requirements_of(name):
            for found in _needed(line, of_extra):
                if found not in wanted:
                    wanted.add(found)
                    waiting.append(found)
    return sorted({name for name, _ in wanted})


def _needed(line: str, extra: str) -> list[tuple[str, str]]:
    """What one requirement line asks for: (package, extra) pairs; nothing when it belongs to another extra."""
    match = _LINE.match(line)
    if match is None:
        raise ValueError(f"not a requirement: {line!r}")
    asked = _EXTRA.search(match["marker"] or "")
    if asked and asked["extra"] != extra:
        return []
    name = _normal(match["name"])
    extras = [word.strip() for word in (match["extras"] or "").split(",") if word.strip()]
    return [(name, ""), *((name, word) for word in extras)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
