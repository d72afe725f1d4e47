"""Stopping a host: drain, end the supervisor, and make sure that nothing is left: processes, sockets, shared memory."""

import time
from collections.abc import Callable

import psutil

from erllama_host.config import Paths, longest_stop_s
from erllama_host.supervisor.handshake import ask_drain
from erllama_host.supervisor.leftovers import clean_unless_running, remove_shared_memory
from erllama_host.supervisor.state import HostState, host_state

SIGNAL_AGAIN_S = 1.0
POLL_S = 0.02
LEAST_TIMEOUT_S = 60.0
STOP_MARGIN_S = 20.0
"""For the cache daemon, which outlasts the workers, and circusd, which outlasts both."""

Progress = Callable[[str], None]


def stop_host(
    paths: Paths,
    *,
    timeout_s: float | None = None,
    now: bool = False,
    drain_s: float = 20.0,
    on_progress: Progress | None = None,
) -> bool:
    """Stop the host in `paths`; returns when nothing of it runs any more. False when none was running.

    Args:
        timeout_s: for the end of the processes after the drain; whoever is left then is killed. None: a minute, and longer where
            a model may save for longer.
        now: no drain, no saves: kill.
        drain_s: how long running requests may go on.
    """
    progress = on_progress or (lambda _: None)
    state = host_state(paths)
    family = _family(state)
    timeout_s = max(LEAST_TIMEOUT_S, longest_stop_s(paths) + STOP_MARGIN_S) if timeout_s is None else timeout_s
    if state.running and not now:
        progress("letting requests finish and saving")
        ask_drain(paths.ipc("clients.sock"), drain_s, drain_s + timeout_s)
        progress("ending the processes")
        family = _merge(family, _family(state))
        _end(family, timeout_s)
    _kill(family)
    if clean_unless_running(paths.run):  # else the next host is up already, by systemd perhaps
        remove_shared_memory(paths)
    return state.running


def _family(state: HostState) -> list[psutil.Process]:
    """Every process of the host, the top first: killed in this order, nobody is left who could start another."""
    found: list[psutil.Process] = []
    for pid in (state.parent_pid, state.circusd_pid):
        try:
            if pid:
                top = psutil.Process(pid)
                found = _merge(found, [top, *top.children(recursive=True)])
        except psutil.NoSuchProcess:
            continue
    return found


def _merge(first: list[psutil.Process], more: list[psutil.Process]) -> list[psutil.Process]:
    return first + [process for process in more if process not in first]


def _end(family: list[psutil.Process], timeout_s: float) -> None:
    """SIGTERM to the top, again and again (circusd may miss one), until all of `family` are gone or time is up."""
    give_up_at = time.monotonic() + timeout_s
    signal_at = 0.0
    while any(map(_alive, family)) and time.monotonic() < give_up_at:
        if time.monotonic() >= signal_at:
            _terminate(family[0])
            signal_at = time.monotonic() + SIGNAL_AGAIN_S
        time.sleep(POLL_S)


def _terminate(process: psutil.Process) -> None:
    """psutil checks that the pid is still that process's: the top may be gone for long while the last of its children saves."""
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=5)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
