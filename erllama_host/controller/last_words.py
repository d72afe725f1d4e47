"""What the end of a worker's log tells of its death. Pure: lines in, lines out.

The log mixes our own JSON lines, llama.cpp's words, and what Python's faulthandler dumps when native code aborts. That dump comes
last and is longer than what is kept, but what was said just before it is the reason.
"""

import json
import re
from typing import Any

SEEN_LINES = 200
SHOWN_LINES = 12

_DUMP = "Fatal Python error: "
_IN_DUMP = re.compile(
    r'(Current thread|Thread) 0x|  File "|  \.\.\.$|  <|Extension modules: |Python runtime state: |\s*$'
)
_ROUTINE = ("info", "debug")
_NO_MEMORY = re.compile(
    r"cannot allocate|memory allocation fail|failed to allocate|bad_alloc|MemoryError|insufficient memory|out of memory"
    r"|can't start new thread|failed to map segment|Resource temporarily unavailable",
    re.IGNORECASE,
)
"""What glibc, the dynamic linker, C++, ggml, Python and ZeroMQ say when memory cannot be had."""


def of_life(lines: list[str], pid: int) -> list[str]:
    """The lines that the process `pid` can have written: nothing up to the last of our own lines of another process."""
    others = [number for number, line in enumerate(lines) if _entry(line).get("pid", pid) != pid]
    return lines[others[-1] + 1 :] if others else lines


def telling(lines: list[str]) -> list[str]:
    """The last lines without faulthandler's dumps, of which the headline stays."""
    kept, in_dump = [], False
    for line in lines:
        in_dump = in_dump and _IN_DUMP.match(line) is not None
        if not in_dump:
            kept.append(line)
        in_dump = in_dump or line.startswith(_DUMP)
    return kept[-SHOWN_LINES:]


def last_words(lines: list[str]) -> str:
    """The last line that tells of something wrong: any but our own routine ones; of our own, what it is about.

    Python's headline of an abort is less than what was said before it, which is what aborted.
    """
    words = [word for word in map(_words, lines) if word]
    if len(words) > 1 and words[-1].startswith(_DUMP):
        words.pop()
    return words[-1] if words else ""


def no_memory(text: str) -> str:
    """The first line that says that memory could not be had; empty when none does."""
    return next((_words(line) for line in text.splitlines() if _NO_MEMORY.search(line)), "")


def _words(line: str) -> str:
    entry = _entry(line)
    if not entry:
        return line.strip()
    if entry.get("level") in _ROUTINE:
        return ""
    told = str(entry.get("message") or entry.get("trace") or "").strip()
    return told.splitlines()[-1] if told else line.strip()


def _entry(line: str) -> dict[str, Any]:
    """One of our own log lines (observability.py); empty for any other."""
    if not line.startswith("{"):
        return {}
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
