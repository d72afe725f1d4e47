"""How much memory there is: the machine or its cgroup (psutil), NVIDIA devices (NVML), or a file, for trying things out."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from erllama_host.controller.placement import Memory

CGROUP = Path("/sys/fs/cgroup")
Source = Callable[[], list[Memory]]


def memory_source(memory_file: str | None) -> Source:
    """The source to look at: `memory_file` (JSON, `[{"total_bytes": …, "used_bytes": …, "name": "ram"}]`) or the machine."""
    if memory_file is not None:
        return lambda: from_file(Path(memory_file))
    devices = _nvml()
    return lambda: [machine(), *devices()]


def machine() -> Memory:
    """Memory of the machine, or of this process's cgroup where that is tighter."""
    system = psutil.virtual_memory()
    whole = Memory(total_bytes=system.total, used_bytes=system.total - system.available)
    group = cgroup(CGROUP)
    return min((whole, group), key=lambda memory: memory.free_bytes) if group is not None else whole


def cgroup(root: Path) -> Memory | None:
    """Limit and use of the cgroup (version 2) mounted at `root`; None when it has no limit."""
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = int((root / "memory.current").read_text(encoding="ascii"))
        fields = dict(line.split() for line in (root / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    # What the kernel can drop at once is not in use in any sense that matters here.
    return Memory(total_bytes=int(limit), used_bytes=max(0, used - int(fields.get("inactive_file", 0))))


def num_oom_kills(root: Path = CGROUP) -> int:
    """How many processes of this cgroup the kernel has killed for want of memory; 0 where it does not say."""
    try:
        events = dict(line.split() for line in (root / "memory.events").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(events.get("oom_kill", 0))


def from_file(path: Path) -> list[Memory]:
    """What the file says; nothing while it is missing or half written."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Memory])
    except (OSError, msgspec.DecodeError):
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
        infos = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        return [Memory(info.total, info.used, f"gpu{index}") for index, info in enumerate(infos)]

    return read
