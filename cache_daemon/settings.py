"""From the host's configuration to tiers: where each lies, how large it may be, and what is done when that does not work out."""

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache_daemon.entries import TierSpec
from erllama_host.config import CacheConfig, Paths

GIB = 1 << 30
MAX_DEFAULT_RAM_BYTES = 8 * GIB
MIN_SHM_BYTES = 128 << 20
"""A smaller /dev/shm (containers have 64 MiB by default) is not used for the built-in tier."""


@dataclass(frozen=True, slots=True)
class TierPlan:
    """The tiers to open, and what an operator should know about them."""

    tiers: list[TierSpec]
    notes: list[str]


def plan_tiers(config: CacheConfig, paths: Paths, shm: Path = Path("/dev/shm")) -> TierPlan:  # noqa: S108
    """Place every tier. Creates nothing.

    The built-in `ram` lies in /dev/shm; where that is missing or small, in a directory under the temp directory, which is a disk on
    many systems: slower, but everything works.
    """
    notes: list[str] = []
    ram_path = _ram_path(config, paths, shm, notes)
    ram_budget = config.ram_budget_bytes or _default_ram_budget(ram_path)
    tiers = [
        TierSpec("ram", "ram", str(ram_path), ram_budget),
        TierSpec("disk", "disk", str(paths.kv_disk), config.disk_budget_bytes),
    ]
    for name, tier in config.tiers.items():
        path = tier.path or str(ram_path / f"tier-{name}")  # goes when the host's shared memory goes
        tiers.append(TierSpec(name, tier.kind, path, tier.budget_bytes))
    return TierPlan(tiers, notes)


def _ram_path(config: CacheConfig, paths: Paths, shm: Path, notes: list[str]) -> Path:
    name = f"erllama-{os.geteuid()}-{paths.instance}"
    if config.ram_path:
        return Path(config.ram_path) / name
    fallback = Path(tempfile.gettempdir()) / name
    if not shm.is_dir() or not os.access(shm, os.W_OK):
        notes.append(f"{shm} is missing or not writable: tier 'ram' lies in {fallback}")
        return fallback
    if _size_bytes(shm) < MIN_SHM_BYTES:
        notes.append(f"{shm} has only {_size_bytes(shm) >> 20} MiB: tier 'ram' lies in {fallback}")
        return fallback
    return shm / name


def _size_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_blocks * status.f_frsize


def _default_ram_budget(path: Path) -> int:
    """A quarter of what the filesystem has free, at most 8 GiB. What this tier occupies already counts as free: else every restart
    of the daemon would find less room, and evict for it.
    """
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    status = os.statvfs(existing)
    return min(MAX_DEFAULT_RAM_BYTES, (status.f_bavail * status.f_frsize + _occupied_bytes(path)) // 4)


def _occupied_bytes(path: Path) -> int:
    """What the files in a tier's directory take."""
    total = 0
    for file in path.glob("*/*"):
        with suppress(FileNotFoundError):  # whoever asks need not be the daemon that has them
            total += file.lstat().st_blocks * 512
    return total
