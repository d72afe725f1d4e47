"""What every check may look at, gathered once."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from erllama_host.config import Config, Paths
from erllama_host.doctor.scan import HostProcess, scan_processes

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's own place, inspected here, never written to


@dataclass(frozen=True)
class Context:
    """The host to look at, and the processes of all hosts on the machine.

    Attributes:
        config: None when erllama.toml cannot be used; `config_error` then says why.
        now: wall clock, seconds.
    """

    paths: Paths
    config: Config | None
    config_error: str = ""
    processes: tuple[HostProcess, ...] = ()
    uid: int = field(default_factory=os.geteuid)
    now: float = field(default_factory=time.time)
    shared_memory: Path = SHARED_MEMORY

    def own(self) -> list[HostProcess]:
        """Processes of the host in our run directory."""
        return [process for process in self.processes if process.run is not None and _same(process.run, self.paths.run)]

    def is_running(self) -> bool:
        """Whether a supervisor runs for our run directory."""
        return any(process.role == "circusd" for process in self.own())

    def ram_path(self) -> Path:
        """Where the tier `ram` lives."""
        configured = self.config.cache.ram_path if self.config else None
        return Path(configured) if configured else self.shared_memory


def gather(paths: Paths) -> Context:
    """The context of the host at `paths`."""
    from erllama_host.config import load_config
    from erllama_host.errors import ConfigError

    processes = tuple(scan_processes())
    try:
        return Context(paths, load_config(paths.config_file), processes=processes)
    except ConfigError as error:
        return Context(paths, None, config_error=error.message, processes=processes)


def instance_of(run: Path) -> str:
    """The 12 hex digits that name the host of a run directory in shared places."""
    return Paths(home=run, run=run, config_file=run).instance


def _same(first: Path, second: Path) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)
