"""Checks of memory, disk and limits against what the configuration asks for."""

import os
import resource
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from erllama_host.config import Config
from erllama_host.doctor.context import Context
from erllama_host.doctor.files import used_bytes
from erllama_host.doctor.finding import Finding, Severity, ok

MIB = 1 << 20
_SMALL_SHARED_MEMORY_BYTES = 256 * MIB
_FILES_WANTED = 4096
_FILES_NEEDED = 1024


def check_shared_memory(context: Context) -> Iterator[Finding]:
    """The place of the `ram` tier exists, can be written to, and is large enough."""
    path = context.ram_path()
    if not path.is_dir():
        yield Finding(
            "shared-memory", "warning", f"{path} does not exist; the cache falls back to a directory for temporary files, on disk",
            "mount a tmpfs there, or set cache.ram_path",
        )  # fmt: skip
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding(
            "shared-memory", "problem", f"{path} cannot be written to (mode {mode:04o})", f"chmod 1777 {path}, as root"
        )
        return
    if path == context.shared_memory and mode & 0o002 and not mode & stat.S_ISVTX:
        yield Finding(
            "shared-memory",
            "problem",
            f"others may delete our files in {path} (mode {mode:04o})",
            f"chmod 1777 {path}, as root",
        )
    yield _size_of_shared_memory(path, context.config)


def _size_of_shared_memory(path: Path, config: Config | None) -> Finding:
    usage = shutil.disk_usage(path)
    wanted = config.cache.ram_budget_bytes if config else None
    if usage.total < _SMALL_SHARED_MEMORY_BYTES:
        return Finding(
            "shared-memory",
            "warning",
            f"{path} has {usage.total // MIB} MiB in all: little for a cache",
            "in a container, start it with --shm-size=8g; elsewhere: mount -o remount,size=50% /dev/shm",
        )
    if wanted is not None and wanted > usage.free:
        return Finding(
            "shared-memory",
            "warning",
            f"cache.ram_budget_bytes is {wanted // MIB} MiB, and {path} has {usage.free // MIB} MiB free",
            "lower the budget or enlarge the filesystem",
        )
    return ok("shared-memory", f"{path} has {usage.free // MIB} of {usage.total // MIB} MiB free")


def check_disk(context: Context) -> Iterator[Finding]:
    """Disk tiers have the room that their budgets promise, and logs have some."""
    tiers = {"disk": (context.paths.kv_disk, context.config.cache.disk_budget_bytes if context.config else 0)}
    for name, tier in (context.config.cache.tiers if context.config else {}).items():
        if tier.path:
            tiers[name] = (Path(tier.path), tier.budget_bytes)
    for name, (path, budget_bytes) in tiers.items():
        yield _check_tier(name, path, budget_bytes)


def _check_tier(name: str, path: Path, budget_bytes: int) -> Finding:
    existing = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    if existing is None:
        return Finding("disk", "problem", f"tier {name}: {path} does not exist and cannot be made", "correct its path")
    used = used_bytes(path)
    free = shutil.disk_usage(existing).free
    if free + used < budget_bytes:
        room = f"{used // MIB} MiB are used and {free // MIB} MiB free at {existing}"
        return Finding(
            "disk",
            "warning",
            f"tier {name}: the budget is {budget_bytes // MIB} MiB, {room}",
            "lower the budget or free disk space; a full disk costs cached prefixes, nothing else",
        )
    return ok("disk", f"tier {name}: {used // MIB} of {budget_bytes // MIB} MiB used, {free // MIB} MiB free")


def check_limits(context: Context) -> Iterator[Finding]:
    """Limits of the shell: open files, locked memory for models that ask for it."""
    yield _check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    locking = [name for name, model in (context.config.models if context.config else {}).items() if model.use_mlock]
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locking and locked != resource.RLIM_INFINITY:
        yield Finding(
            "locked-memory",
            "warning",
            f"{', '.join(locking)} asks for use_mlock, and only {locked // MIB} MiB may be locked",
            "ulimit -l unlimited; systemd: LimitMEMLOCK=infinity",
        )


def _check_open_files(soft: int, hard: int) -> Finding:
    if soft == resource.RLIM_INFINITY or soft >= _FILES_WANTED:
        return ok("open-files", f"{soft if soft != resource.RLIM_INFINITY else 'any number of'} open files are allowed")
    possible = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    severity: Severity = "problem" if soft < _FILES_NEEDED else "info"
    todo = f"ulimit -n {possible}; systemd: LimitNOFILE={_FILES_WANTED}"
    return Finding("open-files", severity, f"{soft} open files are allowed", todo)


def check_memory(context: Context) -> Iterator[Finding]:
    """The configured models fit into memory together."""
    memory = psutil.virtual_memory()
    sizes = {
        name: Path(model.path).stat().st_size
        for name, model in (context.config.models if context.config else {}).items()
        if model.path and not model.lazy and Path(model.path).is_file()
    }
    wanted = sum(sizes.values())
    if wanted > memory.total:
        yield Finding(
            "memory",
            "warning",
            f"the models of erllama.toml have {wanted // MIB} MiB, the machine {memory.total // MIB} MiB",
            "set lazy = true and keep_alive_s for some of them, or use smaller quantisations",
        )
    else:
        yield ok("memory", f"{memory.available // MIB} of {memory.total // MIB} MiB available")
