"""The processes of one host, found by the directory their environment names: who they are, what they use, whether any is left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

CONTROLLER = "controller"
CACHE = "cache"
SUPERVISOR = "circusd"


@dataclass(frozen=True)
class HostProcess:
    """One process: `role` is `circusd`, `controller`, `cache`, `model:<id>`, or `helper`."""

    role: str
    process: psutil.Process

    @property
    def resident_bytes(self) -> int:
        """Resident memory; shared pages count."""
        return int(self.process.memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def role_of(command: Sequence[str]) -> str:
    """What a process of the host does, judging by its command line."""
    words = list(command)
    if "-m" in words[:-1]:
        module = words[words.index("-m") + 1]
        if module == "cache_daemon":
            return CACHE
        if module == "erllama_host.controller":
            return CONTROLLER
        if module == "workers":
            return f"model:{words[words.index('-m') + 2]}"
    if any("circus" in word for word in words[:4]):
        return SUPERVISOR
    return "helper"


def host_processes(run: Path) -> list[HostProcess]:
    """All live processes whose ERLLAMA_RUN is `run`, but for this one."""
    return list(_find(run))


def _find(run: Path) -> Iterator[HostProcess]:
    for process in psutil.process_iter():
        if process.pid == psutil.Process().pid:
            continue
        try:
            if process.environ().get("ERLLAMA_RUN") == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                yield HostProcess(role_of(process.cmdline()), process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue


def kill_leftovers(run: Path) -> list[str]:
    """SIGKILL whatever of the host at `run` still lives; returns the roles: an orderly stop leaves none."""
    left = host_processes(run)
    for found in left:
        try:
            found.process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs([found.process for found in left], timeout=10)
    return [found.role for found in left]
