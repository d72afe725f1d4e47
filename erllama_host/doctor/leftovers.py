"""Checks of what dead hosts may have left: sockets, pid files, processes, shared memory; and of hosts in each other's way."""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from erllama_host.doctor.context import Context, instance_of
from erllama_host.doctor.files import used_bytes
from erllama_host.doctor.finding import Finding, ok
from erllama_host.doctor.scan import HostProcess, scan_processes
from erllama_host.supervisor.leftovers import clean_unless_running


def check_other_hosts(context: Context) -> Iterator[Finding]:
    """Two hosts never share a directory."""
    supervisors = [process for process in context.own() if process.role == "circusd"]
    if len(supervisors) > 1:
        pids = ", ".join(str(process.pid) for process in supervisors)
        yield Finding(
            "one-host",
            "problem",
            f"{len(supervisors)} supervisors run on {context.paths.run}: pids {pids}",
            "stop all but one: kill PID",
        )
    home = os.path.realpath(context.paths.home)
    others = {
        str(process.run)
        for process in context.processes
        if process.home and process.run and os.path.realpath(process.home) == home and process not in context.own()
    }
    for run in sorted(others):
        yield Finding(
            "one-host",
            "problem",
            f"another host (ERLLAMA_RUN={run}) uses the same home {context.paths.home}: both write models.json and the disk tier",
            "give one of them its own ERLLAMA_HOME",
        )
    if len(supervisors) <= 1 and not others:
        yield ok("one-host", f"a host runs, pid {supervisors[0].pid}" if supervisors else "no other host is in the way")


def check_orphans(context: Context) -> Iterator[Finding]:
    """No process of ours has outlived its supervisor."""
    alive = {process.pid for process in context.processes}
    lost = [process for process in context.own() if _is_orphan(process, alive)]
    for process in lost:
        yield Finding(
            "orphans",
            "problem",
            f"{process.role} (pid {process.pid}) has lost its supervisor",
            f"end it: kill {process.pid}, and after some seconds kill -9 {process.pid}",
        )
    if not lost:
        yield ok("orphans", "no process has lost its supervisor")


def _is_orphan(process: HostProcess, alive: set[int]) -> bool:
    return process.role not in ("circusd", "parent") and process.parent_pid not in alive


def check_stale_files(context: Context) -> Iterator[Finding]:
    """No sockets and pid files of a host that is gone."""
    run = context.paths.run
    if context.is_running() or context.own() or not run.is_dir():
        yield ok("stale-files", "no stale sockets or pid files")
        return
    stale = sorted(path for path in run.iterdir() if path.suffix in (".sock", ".pid"))
    if not stale:
        yield ok("stale-files", "no stale sockets or pid files")
        return
    names = ", ".join(path.name for path in stale)
    yield Finding(
        "stale-files",
        "warning",
        f"no host runs, but {run} still has {names}",
        "`erllama up` cleans up by itself, or: erllama doctor --fix",
        fix=partial(_clean, run),
    )


def _clean(run: Path) -> str:
    return f"cleaned {run}" if clean_unless_running(run) else f"left {run} as it is: a host has started there"


def check_orphaned_memory(context: Context) -> Iterator[Finding]:
    """No shared memory of hosts that are gone: it counts as used memory until a reboot."""
    living = {instance_of(process.run) for process in context.processes if process.run is not None}
    folder = context.ram_path()
    prefix = f"erllama-{context.uid}-"
    found = False
    for path in sorted(folder.glob(prefix + "*")) if folder.is_dir() else ():
        if path.name.removeprefix(prefix) in living or not path.is_dir():
            continue
        found = True
        used = used_bytes(path)
        yield Finding(
            "orphaned-memory",
            "warning",
            f"{path} holds {used >> 20} MiB for a host that does not run",
            f"rm -r {path}, or: erllama doctor --fix",
            fix=partial(_remove_unless_used, path, prefix),
        )
    if not found:
        yield ok("orphaned-memory", f"nothing is left in {folder}")


def _remove_unless_used(path: Path, prefix: str) -> str:
    """Looks at the processes again: a host may have started between the first look and the one at the folder."""
    used = {prefix + instance_of(process.run) for process in scan_processes() if process.run is not None}
    if path.name in used:
        return f"left {path} as it is: its host runs"
    shutil.rmtree(path)
    return f"removed {path}"
