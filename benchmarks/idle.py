"""What a host costs while nothing happens: memory over the model's own, processor time at rest, start-up, install size."""

import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from benchmarks.arithmetic import median
from benchmarks.figures import Figure
from benchmarks.host import BenchmarkHost, benchmark_host
from benchmarks.inprocess import in_process_loop
from benchmarks.processes import HostProcess
from benchmarks.requirements import closure
from benchmarks.setting import ROOT, Setting, think

PART = "idle"
N_CTX = 2048
REST_S = 10.0
SETTLE_S = 2.0
PACKAGE = "erllama-host"


def run(setting: Setting) -> list[Figure]:
    """One host with one model that has answered once, looked at for ten seconds; start-up without models, until it answers."""
    with in_process_loop(setting.model, N_CTX) as loop:
        own_bytes = loop.resident_bytes
    with benchmark_host() as host:
        model = host.load(setting.model, "tiny", n_ctx=N_CTX, n_cells=N_CTX, n_seq_max=1)
        model.stream(setting.corpus.prompt(1300, 64), 8)
        time.sleep(SETTLE_S)
        figures = [
            *_memory(host, own_bytes),
            *_processor(host, REST_S / setting.repeats(1, 3)),
        ]
        starts_ms = _start_ups(host, setting.repeats(5, 2))
    figures.append(Figure(PART, "start-up of a host without models", median(starts_ms), "ms"))
    return [*figures, *_install_sizes()]


def _memory(host: BenchmarkHost, own_bytes: int) -> list[Figure]:
    figures = []
    for role, found in _by_role(host.processes()).items():
        megabytes = sum(process.resident_bytes for process in found) / 1e6
        if role.startswith("model:"):
            figures.append(Figure(PART, "memory of a worker", megabytes, "MB", "model alone", own_bytes / 1e6))
        else:
            figures.append(Figure(PART, f"memory of {role}", megabytes, "MB", note=_counted(found)))
    return figures


def _processor(host: BenchmarkHost, rest_s: float) -> list[Figure]:
    """Share of one core, over a while in which nobody asks anything."""
    before = {found.process.pid: found.cpu_s for found in host.processes()}
    started = time.perf_counter()
    time.sleep(rest_s)
    after = host.processes()
    elapsed_s = time.perf_counter() - started
    used: dict[str, float] = defaultdict(float)
    for found in after:
        used[found.role] += found.cpu_s - before.get(found.process.pid, 0.0)
    return [
        Figure(PART, f"processor at rest, {role}", seconds / elapsed_s * 100, "% of a core")
        for role, seconds in used.items()
    ]


def _by_role(processes: Iterable[HostProcess]) -> dict[str, list[HostProcess]]:
    grouped: dict[str, list[HostProcess]] = defaultdict(list)
    for found in processes:
        grouped[found.role].append(found)
    return dict(grouped)


def _counted(found: list[HostProcess]) -> str:
    return f"{len(found)} processes" if len(found) > 1 else ""


def _start_ups(host: BenchmarkHost, repeats: int) -> list[float]:
    """Milliseconds of `up`, on directories without a model."""
    for model in host.client.list_models():
        host.client.unload(model.model_id)
    starts_ms = []
    for _ in range(repeats):
        host.restart()
        starts_ms.append(host.start_s * 1e3)
        think()
    return starts_ms


def _install_sizes() -> list[Figure]:
    """Bytes of the installed files of the package's dependencies, for the client alone and for a host."""
    figures = []
    for name, extra in (("client", ""), ("host", "host")):
        packages = closure(PACKAGE, extra, _requirements)
        megabytes = sum(_installed_bytes(package) for package in packages) / 1e6
        figures.append(Figure(PART, f"install size, {name}", megabytes, "MB", note=f"{len(packages)} packages"))
    return figures


def _requirements(package: str) -> list[str]:
    """Requirement lines of a package; the host's own come from its source, which need not be installed."""
    if package == PACKAGE:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines: list[str] = project["dependencies"]
        return lines + [f'{line}; extra == "host"' for line in project["optional-dependencies"]["host"]]
    found = _distribution(package)
    return list(found.requires or []) if found else []


def _installed_bytes(package: str) -> int:
    found = _distribution(package)
    paths = [Path(str(file.locate())) for file in (found.files or [])] if found else []
    return sum(path.stat().st_size for path in paths if path.is_file())


def _distribution(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None
