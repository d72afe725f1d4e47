"""Supervision: circusd's configuration and hooks, the small parent that keeps circusd alive, starting and stopping a host.

circusd imports `hooks` and `environment` from here: both stay light. What `erllama up`, `down` and `run` use:

    start_host(paths, config, detach=...)   start a host, return when it answers
    stop_host(paths)                        drain it, end it, leave nothing behind
    host_state(paths)                       is one running, and under which pids
    private_host()                          one in a temporary directory, for the length of a `with`
    private_paths()                         only the directories of such a host
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erllama_host.supervisor.private import private_host as private_host
    from erllama_host.supervisor.private import private_paths as private_paths
    from erllama_host.supervisor.start import RunningHost as RunningHost
    from erllama_host.supervisor.start import start_host as start_host
    from erllama_host.supervisor.state import HostState as HostState
    from erllama_host.supervisor.state import host_state as host_state
    from erllama_host.supervisor.stop import stop_host as stop_host

_LAZY = {
    "HostState": "state",
    "RunningHost": "start",
    "host_state": "state",
    "private_host": "private",
    "private_paths": "private",
    "start_host": "start",
    "stop_host": "stop",
}
__all__ = ["HostState", "RunningHost", "host_state", "private_host", "private_paths", "start_host", "stop_host"]


def __getattr__(name: str) -> object:
    """Import on first use: circusd imports this package for its hooks alone."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
