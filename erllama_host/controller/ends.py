"""Why a worker ended, in a word for programs and a sentence for people. Pure."""

import signal
from dataclasses import dataclass

from erllama_host.controller.last_words import no_memory
from erllama_host.process import ExitCode
from erllama_host.supervisor.notes import ExitNote

_BY_CODE = {
    ExitCode.CLEAN: ("ended", "ended by itself"),
    ExitCode.CRASHED: ("crashed", "crashed: an unexpected exception (see its log)"),
    ExitCode.LOAD_FAILED: ("load_failed", "its model could not be loaded"),
    ExitCode.BAD_CONFIG: ("load_failed", "its configuration could not be used"),
    ExitCode.HUNG: ("hung", "hung"),
    ExitCode.OUT_OF_MEMORY: ("out_of_memory", "out of memory"),
    ExitCode.FENCED: ("fenced", "left because a younger worker serves the model"),
    ExitCode.ORPHANED: ("orphaned", "left because its supervisor had died"),
}
_OF_ITS_OWN = ("crashed", "out_of_memory")


@dataclass(frozen=True)
class End:
    """`kind`: crashed, out_of_memory, hung, load_failed, asked, ended, fenced, orphaned, unknown."""

    kind: str
    text: str


def explain(note: ExitNote | None, kill_reason: str = "", oom_killed: bool = False) -> End:
    """What ended a worker.

    Args:
        note: circusd's note about it, if one came.
        kill_reason: set when it was us who killed it.
        oom_killed: the kernel has killed something for want of memory since the last look.
    """
    if kill_reason:
        return End("hung", kill_reason)
    if note is None:
        return End("unknown", "ended; the supervisor has not said how")
    if note.asked:
        return End("asked", "asked to stop")
    if note.exit_code == -signal.SIGKILL and oom_killed:
        return End("out_of_memory", "out of memory: killed by the kernel")
    if note.exit_code < 0:
        return End("crashed", f"crashed: signal {-note.exit_code} ({_signal_name(-note.exit_code)})")
    if note.exit_code in _BY_CODE:
        return End(*_BY_CODE[ExitCode(note.exit_code)])
    return End("crashed", f"crashed: exit code {note.exit_code}")


def blame_address_space(end: End, limit_bytes: int | None, lines: list[str]) -> End:
    """The end of a process that had a limit and said that memory could not be had: nobody would find that in a stack dump."""
    word = no_memory("\n".join(lines)) if limit_bytes is not None and end.kind in _OF_ITS_OWN else ""
    return End("out_of_memory", f"out of address space: {word}; {_raise_limit(limit_bytes)}") if word else end


def address_space_hint(limit_bytes: int | None, message: str) -> str:
    """What to add to a worker's own words about a failed load when its limit is the likely cause; else empty."""
    return f"; {_raise_limit(limit_bytes)}" if limit_bytes is not None and no_memory(message) else ""


def _raise_limit(limit_bytes: int | None) -> str:
    return f"raise address_space_bytes (now {limit_bytes})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
