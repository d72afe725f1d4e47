"""Every error code, from the docstrings of erllama_host.errors."""

from erllama_host.cli.exits import exit_code
from erllama_host.errors import BY_CODE, ErllamaError

_HEAD = """# Errors

Every error has a stable `code` (its class name), a message for a person, and says whether trying again helps. In Python they
are classes of `erllama_host.errors`, all below `ErllamaError`; on the wire they are `error` messages with these codes; on the
command line `--json` prints `{"error": {"code": ..., "message": ..., "retryable": ..., "details": ...}}` on stderr.

"""


def page() -> str:
    """The whole page."""
    lines = [_HEAD + "| code | kind of | try again | exit code | meaning |", "|---|---|---|---|---|"]
    for code, cls in BY_CODE.items():
        parent = cls.__bases__[0]
        kind = "" if parent is ErllamaError else f"`{parent.__name__}`"
        meaning = " ".join((cls.__doc__ or "").split()).rstrip(".").replace("|", "\\|")
        again = "yes" if cls.retryable else "no"
        lines.append(f"| `{code}` | {kind} | {again} | {int(exit_code(cls('')))} | {meaning} |")
    return "\n".join(lines) + "\n"
