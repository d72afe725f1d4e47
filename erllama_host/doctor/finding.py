"""What a check says. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["ok", "info", "warning", "problem"]
ORDER: tuple[Severity, ...] = ("problem", "warning", "info", "ok")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: short name of the check, stable, for scripts.
        severity: `problem` keeps something from working, `warning` will one day, `info` is worth knowing, `ok` is fine.
        what: what is the case. todo: what to do about it; empty when nothing.
        fix: does the harmless thing, and returns what it did; None where a person must decide.
    """

    check: str
    severity: Severity
    what: str
    todo: str = ""
    fix: Callable[[], str] | None = field(default=None, compare=False)

    @property
    def fixable(self) -> bool:
        """Whether `--fix` can mend it."""
        return self.fix is not None


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", what)
