"""Small files under `$ERLLAMA_RUN` by which circusd's hooks and the controller tell each other about processes.

    exits/<name>.json    by circusd's hooks: the last ends of a watcher's processes, and what was decided. Outlives a controller
                         that was away, which circus's events do not
    ready/<name>         by the controller, and by the cache daemon for itself: pid of what serves, so that an early end is told
                         from a late one
    controller.beat      by the controller, every second: its pid; circusd's hooks kill a controller that stops touching it

`<name>` is the watcher's with `:` as `+`, which no model id contains. All but the beat are replaced by rename, so that readers see
a whole one.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_NOTES = 10
MODEL_PREFIX = "model:"
BEAT_FILE = "controller.beat"


@dataclass(frozen=True)
class ExitNote:
    """One end of a process.

    Attributes:
        at: wall clock, seconds. exit_code: -N for signal N.
        ready: it had been ready to serve. asked: its watcher was being stopped.
        respawn: circusd starts it again, after `delay_s`. reason: why not.
    """

    pid: int
    at: float
    exit_code: int
    ready: bool = False
    asked: bool = False
    respawn: bool = True
    delay_s: float = 0.0
    reason: str = ""


def watcher_name(model_id: str) -> str:
    """The watcher of a model."""
    return MODEL_PREFIX + model_id


def model_of_watcher(name: str) -> str | None:
    """The model of a watcher; None for the static ones."""
    return name.removeprefix(MODEL_PREFIX) if name.startswith(MODEL_PREFIX) else None


def write_exit(run: Path, watcher: str, note: ExitNote) -> None:
    """Add a note to those of `watcher`; the oldest beyond MAX_NOTES go."""
    notes = [*read_exits(run, watcher), note][-MAX_NOTES:]
    _replace(_file(run, "exits", watcher, ".json"), json.dumps([asdict(each) for each in notes]))


def read_exits(run: Path, watcher: str) -> list[ExitNote]:
    """Notes of `watcher`, oldest first; empty when there are none or the file is not one of ours."""
    try:
        entries = json.loads(_file(run, "exits", watcher, ".json").read_text(encoding="utf-8"))
        return [ExitNote(**entry) for entry in entries]
    except (OSError, ValueError, TypeError):
        return []


def exit_of(run: Path, watcher: str, pid: int) -> ExitNote | None:
    """The note about the end of process `pid`, if it has been written."""
    return next((note for note in reversed(read_exits(run, watcher)) if note.pid == pid), None)


def forget_exits(run: Path, watcher: str) -> None:
    """Remove the notes of `watcher`, and its mark of readiness."""
    _file(run, "exits", watcher, ".json").unlink(missing_ok=True)
    _file(run, "ready", watcher).unlink(missing_ok=True)


def mark_ready(run: Path, watcher: str, pid: int) -> None:
    """Note that process `pid` of `watcher` serves."""
    _replace(_file(run, "ready", watcher), str(pid))


def was_ready(run: Path, watcher: str, pid: int) -> bool:
    """Whether process `pid` of `watcher` had been marked ready."""
    try:
        return _file(run, "ready", watcher).read_text(encoding="ascii") == str(pid)
    except OSError:
        return False


def _file(run: Path, folder: str, watcher: str, suffix: str = "") -> Path:
    return run / folder / (watcher.replace(":", "+") + suffix)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
