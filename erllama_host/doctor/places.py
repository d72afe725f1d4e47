"""Checks of configuration, directories and files."""

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from erllama_host.config.paths import MAX_IPC_PATH_BYTES
from erllama_host.doctor.context import Context
from erllama_host.doctor.files import status_of
from erllama_host.doctor.finding import Finding, ok
from erllama_host.transport.curve import list_keys, useless_keys

_CLOCK_SLACK_S = 300.0


def check_config(context: Context) -> Iterator[Finding]:
    """erllama.toml can be read, and its model files exist."""
    path = context.paths.config_file
    if context.config is None:
        yield Finding(
            "config", "problem", context.config_error, f"edit {path}; docs/guides/configuration.md has every key"
        )
        return
    if not path.exists():
        yield ok("config", f"no {path}: everything has its default")
        return
    missing = [
        (name, model.path)
        for name, model in context.config.models.items()
        if model.path and not os.access(model.path, os.R_OK)
    ]
    for name, model_path in missing:
        yield Finding(
            "config", "problem", f"models.{name}.path: cannot read {model_path}", f"correct the path in {path}"
        )
    if not missing:
        yield ok("config", f"{path} is valid")


def check_directories(context: Context) -> Iterator[Finding]:
    """Home and run are ours and closed to others, and short enough for sockets."""
    for key, path in (("ERLLAMA_HOME", context.paths.home), ("ERLLAMA_RUN", context.paths.run)):
        yield _check_directory(key, path, context.uid)
    length = len(os.fsencode(context.paths.run / "circus-events.sock"))
    if length > MAX_IPC_PATH_BYTES:
        yield Finding(
            "run-path",
            "problem",
            f"{context.paths.run} is too long: a socket path there has {length} bytes, the kernel allows {MAX_IPC_PATH_BYTES}",
            "set ERLLAMA_RUN to a shorter directory",
        )


def _check_directory(key: str, path: Path, uid: int) -> Finding:
    name = "home" if key == "ERLLAMA_HOME" else "run"
    if not path.exists():
        return ok(name, f"{path} will be made by `erllama up`")
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        return Finding(name, "problem", f"{path} is no directory", f"remove it, or set {key} to another place")
    if status.st_uid != uid:
        return Finding(name, "problem", f"{path} belongs to uid {status.st_uid}", f"set {key} to a directory of yours")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return Finding(
            name,
            "problem",
            f"{path} is open to other users (mode {mode:04o}); a host refuses to start there",
            f"chmod 700 {path}",
            fix=partial(_make_private, path),
        )
    if not os.access(path, os.W_OK | os.X_OK):
        return Finding(
            name, "problem", f"{path} cannot be written to", f"chmod u+rwx {path}", fix=partial(_make_private, path)
        )
    return ok(name, f"{path} is private and writable")


def _make_private(path: Path) -> str:
    path.chmod(0o700)
    return f"made {path} private"


def check_keys(context: Context) -> Iterator[Finding]:
    """Key files are closed to others and can be used; tcp has the keys that it needs."""
    remote = context.config.remote if context.config else None
    folder = Path(remote.keys_dir) if remote and remote.keys_dir else context.paths.keys
    loose = [path for path in folder.rglob("*") if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in loose:
        yield Finding(
            "keys",
            "problem",
            f"{path} can be read by others",
            f"chmod 600 {path}",
            fix=partial(_close_file, path),
        )
    useless = useless_keys(folder)
    for error in useless:
        yield Finding("keys", "problem", error.message, "correct or remove the file")
    if remote is not None and remote.listen and not list_keys(folder):
        yield Finding(
            "keys",
            "problem",
            f"remote.listen is set, and no client has a key in {folder}: a host refuses to start",
            "run: erllama keys new NAME --role user",
        )
    elif not loose and not useless and folder.is_dir():
        yield ok("keys", f"{folder} is closed to others")


def _close_file(path: Path) -> str:
    path.chmod(0o600)
    return f"closed {path} to others"


def check_clock(context: Context) -> Iterator[Finding]:
    """The clock has not gone back: lives of processes are ordered by it."""
    latest, newest = 0.0, None
    for folder in (context.paths.run, context.paths.home, context.paths.logs):
        for path in folder.glob("*") if folder.is_dir() else ():
            status = status_of(path)
            if status is not None and status.st_mtime > latest:
                latest, newest = status.st_mtime, path
    if latest > context.now + _CLOCK_SLACK_S:
        yield Finding(
            "clock",
            "problem",
            f"{newest} is from the future by {latest - context.now:.0f} s: the clock has been set back",
            "set the clock (timedatectl status), then restart the host, or younger processes are taken for older ones",
        )
    else:
        yield ok("clock", "the clock has not gone back")
