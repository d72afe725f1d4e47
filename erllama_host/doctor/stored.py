"""Checks of what a host keeps below its home: the list of models, and files that nobody owns any more."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from erllama_host.controller.desired import DesiredState
from erllama_host.doctor.context import Context
from erllama_host.doctor.finding import Finding, ok
from erllama_host.process import exists

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\Z")
"""Files are written as `.<name>.<pid>` and renamed; one whose process is gone was never finished."""


def check_models_file(context: Context) -> Iterator[Finding]:
    """models.json can be read, and what it wants to load is there."""
    path = context.paths.models_file
    if not path.exists():
        yield ok("models-file", "no models but those of erllama.toml are wanted")
        return
    try:
        wanted = msgspec.json.decode(path.read_bytes(), type=DesiredState).models
    except (OSError, ValueError) as error:
        yield Finding(
            "models-file",
            "warning",
            f"{path} cannot be read ({error}); the next start sets it aside, and loads what erllama.toml says",
            "load the models again after the start",
        )
        return
    missing = [
        (name, want.config.path)
        for name, want in wanted.items()
        if want.config.backend == "llama" and not _readable(want.config.path)
    ]
    for name, model_path in missing:
        yield Finding(
            "models-file",
            "warning",
            f"{name} is wanted, and {model_path} cannot be read",
            f"bring it back, or: erllama unload {name}",
        )
    if not missing:
        yield ok("models-file", f"{len(wanted)} models besides those of erllama.toml come back at a start")


def check_orphaned_files(context: Context) -> Iterator[Finding]:
    """No half-written files of processes that are gone, and no damaged ones that were set aside."""
    folders = (context.paths.home, context.paths.run, context.paths.home / "replies")
    unfinished = [
        path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir()) if _is_unfinished(path)
    ]
    for path in unfinished:
        yield Finding(
            "orphaned-files",
            "info",
            f"{path} was never finished",
            f"rm {path}, or: erllama doctor --fix",
            fix=partial(_remove, path),
        )
    aside = sorted(context.paths.home.glob("models.json.damaged-*")) if context.paths.home.is_dir() else []
    for path in aside:
        yield Finding(
            "orphaned-files",
            "warning",
            f"{path} was damaged, and set aside at a start",
            "look what it was, and remove it",
        )
    if not unfinished and not aside:
        yield ok("orphaned-files", "no half-written or damaged files")


def _readable(path: str) -> bool:
    return os.access(path, os.R_OK)


def _is_unfinished(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    return match is not None and path.is_file() and not exists(int(match["pid"]))


def _remove(path: Path) -> str:
    path.unlink(missing_ok=True)
    return f"removed {path}"
