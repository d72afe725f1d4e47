"""The processes of hosts on this machine, found by their command lines and environments. Read-only."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_MODULES = {
    "cache_daemon": "cache",
    "erllama_host.controller": "controller",
    "workers": "model",
    "erllama_host.supervisor": "parent",
}


@dataclass(frozen=True)
class HostProcess:
    """One process of some host.

    Attributes:
        role: `circusd`, `parent`, `cache`, `controller`, `model:<id>`, or `helper` of one of them.
        parent_pid: 1 (or another reaper's) when it has lost its own.
        run, home: its host's directories; None where its environment cannot be read (another user's).
    """

    pid: int
    parent_pid: int
    role: str
    uid: int
    run: Path | None = None
    home: Path | None = None


def scan_processes() -> list[HostProcess]:
    """Every process of a host that this user can see, in the order of their pids."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline", "uids"]):
        role = role_of(process.info["cmdline"] or ())
        if role is None:
            continue
        environment = _environment(process)
        run, home = environment.get("ERLLAMA_RUN"), environment.get("ERLLAMA_HOME")
        uids = process.info["uids"]
        found.append(
            HostProcess(
                pid=process.info["pid"],
                parent_pid=process.info["ppid"] or 0,
                role=role,
                uid=uids.real if uids else -1,
                run=Path(run) if run else None,
                home=Path(home) if home else None,
            )
        )
    return found


def role_of(command_line: Iterable[str]) -> str | None:
    """The role that a command line shows: `python -m workers tiny` is `model:tiny`; None for other people's programs."""
    words = list(command_line)
    if not words or not _is_python(words[0]):
        return None
    if "-m" in words[:-1]:
        at = words.index("-m") + 1
        role = _role_of_module(words[at])
        if role == "model":
            return f"model:{words[at + 1]}" if len(words) > at + 1 else None
        return role
    is_circusd = any(Path(word).name == "circusd" for word in words[1:3])
    return "circusd" if is_circusd and any("erllama" in word or word.endswith("circus.ini") for word in words) else None


def _is_python(word: str) -> bool:
    return Path(word).name.startswith("python")


def _role_of_module(module: str) -> str | None:
    if module in _MODULES:
        return _MODULES[module]
    if module.partition(".")[0] in ("workers", "cache_daemon"):
        return "helper"
    return "circusd" if module == "circus.circusd" else None


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
        return {}
