"""How much memory there is: the machine or its cgroup (psutil), NVIDIA devices (NVML), or a file, for trying things out."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from erllama_host.controller.placement import Memory

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
Source = Callable[[], list[Memory]]


def memory_source(memory_file: str | None) -> Source:
    """The source to look at: `memory_file` (JSON, `[{"total_bytes": …, "used_bytes": …, "name": "ram"}]`) or the machine."""
    if memory_file is not None:
        return lambda: from_file(Path(memory_file))
    devices = _nvml()
    return lambda: [machine(), *devices()]


def machine(listing: Path = OWN_CGROUPS, root: Path = CGROUP) -> Memory:
    """Memory of the machine, or of this process's cgroup, or one above it, where that is tighter."""
    system = psutil.virtual_memory()
    whole = Memory(total_bytes=system.total, used_bytes=system.total - system.available)
    groups = [group for group in map(cgroup, _with_those_above(own_cgroup(listing, root), root)) if group is not None]
    return min((whole, *groups), key=lambda memory: memory.free_bytes)


def own_cgroup(listing: Path = OWN_CGROUPS, root: Path = CGROUP) -> Path:
    """Directory of this process's cgroup (version 2): below `root` in a systemd unit or session, `root` itself in a container."""
    try:
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return root
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return root / path if (root / path).is_dir() else root


def _with_those_above(group: Path, root: Path) -> list[Path]:
    return [each for each in (group, *group.parents) if each.is_relative_to(root)]


def cgroup(group: Path) -> Memory | None:
    """Limit and use of a cgroup (version 2); None when it has no limit of its own."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        fields = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    # What the kernel can drop at once is not in use in any sense that matters here.
    return Memory(total_bytes=int(limit), used_bytes=max(0, used - int(fields.get("inactive_file", 0))))


def num_oom_kills(group: Path | None = None) -> int:
    """How many processes of this cgroup (None: our own) the kernel has killed for want of memory; 0 where it does not say."""
    file = (group or own_cgroup()) / "memory.events"
    try:
        events = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(events.get("oom_kill", 0))


def from_file(path: Path) -> list[Memory]:
    """What the file says; nothing while it is missing or half written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Memory])
    except (OSError, ValueError):
        return []


def _nvml() -> Source:
    """Devices NVML knows; none where there is no driver or no Python binding."""
    try:
        import pynvml
    except ImportError:
        return list
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return list

    def read() -> list[Memory]:
        found = []
        for index, handle in enumerate(handles):
            try:
                info = pynvml.nvmlDeviceGetMemoryInfo(handle)
            except pynvml.NVMLError:  # a device that has fallen off the bus, or one that shares the machine's memory
                continue
            found.append(Memory(info.total, info.used, f"gpu{index}"))
        return found

    return read
