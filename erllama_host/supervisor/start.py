"""Starting a host: spawn the parent, wait for the host's own answer, explain when none comes."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from erllama_host.config import Config, Paths
from erllama_host.errors import ConfigError, HostUnavailable
from erllama_host.protocol.calls import HostHello
from erllama_host.supervisor.environment import DIE_WITH_PARENT, LOCKED, NO_BYTECODE, START_FD, circus_variables
from erllama_host.supervisor.handshake import ask_hello
from erllama_host.supervisor.leftovers import clean_unless_running
from erllama_host.supervisor.state import host_state
from erllama_host.supervisor.stop import stop_host
from erllama_host.transport.curve import check_remote

SHOWN_LOG_LINES = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RunningHost:
    """A host that answers.

    Attributes:
        process: the parent, while it is our child; None for a detached host.
    """

    paths: Paths
    hello: HostHello
    process: subprocess.Popen[bytes] | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for a host in the foreground to end: its exit code, or None when `timeout_s` came first."""
        if self.process is None:
            return None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


def start_host(
    paths: Paths, config: Config, *, detach: bool, on_progress: Progress | None = None, timeout_s: float = 60.0
) -> RunningHost:
    """Start a host and return when it answers. Models of the configuration may still be loading then.

    Args:
        detach: the host outlives the caller; without it the host ends when the caller's thread ends.

    Raises:
        ConfigError: a host runs there already, or the directories or the keys cannot be used.
        HostUnavailable: it did not come up; the message has the last lines of its logs.
    """
    progress = on_progress or (lambda _: None)
    paths.prepare()
    state = host_state(paths)
    if state.running:
        raise _already_running(f"a host is already running in {paths.run} (pid {state.pid})")
    check_remote(paths, config)
    if not clean_unless_running(paths.run):
        raise _already_running(f"a host is starting in {paths.run}")
    paths.prepare()
    progress("starting the supervisor")
    process, report = _spawn_parent(paths, config, detach)
    progress("waiting for the host to answer")
    try:
        hello = _wait_for_answer(paths, report, timeout_s)
    except ConfigError:
        process.wait()  # another host was faster; it is not ours to stop
        raise
    except BaseException:
        stop_host(paths, now=True)
        process.wait()
        raise
    finally:
        os.close(report)
    return RunningHost(paths, hello, None if detach else process)


def _spawn_parent(paths: Paths, config: Config, detach: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The parent process (of a detached one: the short-lived one that forks it), and the read end of its report pipe."""
    read_end, write_end = os.pipe()
    environment = {**os.environ, **circus_variables(paths, config), START_FD: str(write_end), **_import_path()}
    for name in (DIE_WITH_PARENT, NO_BYTECODE):
        environment.pop(name, None)
    if not detach:
        environment[DIE_WITH_PARENT] = "1"
    command = [sys.executable, "-m", "erllama_host.supervisor", *(["--detach"] if detach else [])]
    with _open_log(paths.logs / "circusd.log", config.host.log_max_bytes) as log:
        process = subprocess.Popen(
            command,
            cwd=paths.run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(write_end,),
            start_new_session=True,  # the terminal's Ctrl-C is the caller's, who stops the host in order
        )
    os.close(write_end)
    if detach:
        process.wait()
    return process, read_end


def _open_log(path: Path, max_bytes: int) -> BinaryIO:
    if path.exists() and path.stat().st_size > max_bytes:
        path.replace(path.with_name(path.name + ".1"))
    path.touch(mode=0o600)
    return path.open("ab")


def _import_path() -> dict[str, str]:
    """Lets the host import the very package that starts it, also when that is a source tree that is not installed."""
    root = Path(__file__).parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(root), *([others] if others else [])])}


def _wait_for_answer(paths: Paths, report: int, timeout_s: float) -> HostHello:
    """First for our parent's lock: until then, who answers is another host, whose `up` was faster."""
    give_up_at = time.monotonic() + timeout_s
    _wait_for_lock(paths, report, timeout_s)
    while time.monotonic() < give_up_at:
        if select.select([report], [], [], 0)[0]:
            raise _did_not_start(paths, "it ended while starting")
        hello = ask_hello(paths.ipc("clients.sock"), timeout_s=0.25)
        if hello is not None:
            return hello
    raise _did_not_start(paths, f"it did not answer within {timeout_s:g} s")


def _wait_for_lock(paths: Paths, report: int, timeout_s: float) -> None:
    word = os.read(report, 4096) if select.select([report], [], [], timeout_s)[0] else b""
    if not word:
        raise _did_not_start(paths, "its parent did not begin")
    if word != LOCKED:
        raise _already_running(word.decode(errors="replace"))


def _already_running(what: str) -> ConfigError:
    return ConfigError(
        f"{what}; stop it with `erllama down`, or set ERLLAMA_RUN to another directory", key="ERLLAMA_RUN"
    )


def _did_not_start(paths: Paths, why: str) -> HostUnavailable:
    lines: list[str] = []
    for name in ("circusd.log", "cache.log", "controller.log"):
        lines += [f"{name}: {line}" for line in last_lines(paths.logs / name, SHOWN_LOG_LINES)]
    return HostUnavailable(f"the host did not start: {why}. Its logs are in {paths.logs}", last_log_lines=lines)


def last_lines(path: Path, count: int, window_bytes: int = 16384) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - window_bytes))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
