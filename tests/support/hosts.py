"""Real hosts for tests: private, short paths, and nothing left behind, also when the test fails."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from erllama_host.config import Paths, parse_config
from erllama_host.supervisor.leftovers import shared_memory_directories
from erllama_host.supervisor.start import RunningHost, last_lines, start_host
from erllama_host.supervisor.state import HostState, host_state
from erllama_host.supervisor.stop import stop_host
from tests.support.wire import WireClient

T = TypeVar("T")
BOUND_S = 60.0


@dataclass
class Host:
    """A running host and how to look at it."""

    paths: Paths
    running: RunningHost

    @property
    def endpoint(self) -> str:
        return self.paths.ipc("clients.sock")

    def client(self) -> WireClient:
        return WireClient(self.endpoint)

    def state(self) -> HostState:
        return host_state(self.paths)

    def logs(self) -> str:
        """The ends of all logs, for the message of a failed test."""
        files = sorted(self.paths.logs.glob("*.log"))
        return "\n".join(f"--- {file.name}\n" + "\n".join(last_lines(file, 25)) for file in files)

    def pid_of(self, role: str) -> int:
        """Pid of `circusd`, `controller`, `cache` or `model:<id>`, as the host tells; 0 when there is none."""
        with self.client() as client:
            # Short: a controller that is killed just now takes the question with it.
            processes = client.call("host_status", timeout_s=5)["processes"]
        return next((each.get("pid", 0) for each in processes if each["role"] == role), 0)

    def events(self, name: str) -> list[dict]:
        """Events of that name in the journal."""
        with self.client() as client:
            return [
                event
                for event in client.call("events", {"limit": 1000}, timeout_s=5)["events"]
                if event["name"] == name
            ]


def eventually(look: Callable[[], T], what: str, timeout_s: float = BOUND_S) -> T:
    """Wait until `look()` is true; errors of a host that is coming back count as not yet."""
    give_up_at = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < give_up_at:
        try:
            last = look()
            if last:
                return last
        except Exception as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}; last: {last!r}")


@contextmanager
def directories() -> Iterator[Paths]:
    """Directories for hosts that the test starts itself; whatever still runs in them at the end is killed."""
    base = Path(tempfile.mkdtemp(prefix="ed-"))
    paths = Paths(base / "home", base / "run", base / "erllama.toml")
    try:
        yield paths
    finally:
        stop_host(paths, now=True)
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def running_host(config_text: str = "", detach: bool = False, drain_s: float = 0.0) -> Iterator[Host]:
    """A private host; at the end it is stopped and must have left nothing: no process, socket, shared memory."""
    base = Path(tempfile.mkdtemp(prefix="eh-"))
    paths = Paths(base / "home", base / "run", base / "erllama.toml")
    paths.config_file.write_text(config_text, encoding="utf-8")
    failed = True
    family: list[psutil.Process] = []
    host: Host | None = None
    try:
        host = Host(paths, start_host(paths, parse_config(config_text), detach=detach))
        yield host
        family = family_of(paths)
        stop_host(paths, drain_s=drain_s)
        failed = False
    except BaseException:
        if host is not None:
            print(host.logs())
        raise
    finally:
        family = family or family_of(paths)
        if failed:
            stop_host(paths, now=True)
        if host is not None:
            host.running.wait(10)
        left = leftovers(paths, family)
        for process in family:
            if process.is_running():
                process.kill()
        shutil.rmtree(base, ignore_errors=True)
        for directory in shared_memory_directories(paths):
            shutil.rmtree(directory, ignore_errors=True)
    assert not left, f"the host left behind: {left}"


def family_of(paths: Paths) -> list[psutil.Process]:
    """Every process of the host, found by the environment that names its directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ERLLAMA_RUN") == str(paths.run):
                found.append(process)
        except psutil.Error:
            continue
    return found


def leftovers(paths: Paths, family: list[psutil.Process]) -> list[str]:
    """What should have gone."""
    processes = [str(each) for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    files = [str(path) for path in paths.run.rglob("*")] if paths.run.exists() else []
    return processes + files + [str(path) for path in shared_memory_directories(paths) if path.exists()]
