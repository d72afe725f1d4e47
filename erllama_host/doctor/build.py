"""Checks of the software: Python, libraries, and what llama.cpp has been built with.

llama.cpp is asked in a child process: importing it takes a second and maps its libraries, and a broken build may abort.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from erllama_host.doctor.context import Context
from erllama_host.doctor.finding import Finding, ok

_PROBE_TIMEOUT_S = 60.0
_PROBE = """
import json, llama_cpp
from llama_cpp import llama_cpp as low
print(json.dumps({
    "version": llama_cpp.__version__,
    "system": low.llama_print_system_info().decode(errors="replace"),
    "gpu": bool(low.llama_supports_gpu_offload()),
    "mmap": bool(low.llama_supports_mmap()),
}))
"""
_HOST_PACKAGES = ("llama-cpp-python", "circus", "numpy", "jinja2", "xxhash")
_CPU_FLAGS = (("avx2", "AVX2"), ("fma", "FMA"), ("avx512f", "AVX512"), ("asimd", "NEON"))
_NVIDIA_DEVICE = Path("/dev/nvidiactl")


def check_packages(context: Context) -> Iterator[Finding]:
    """What a host needs is installed, in versions that are known to work."""
    missing = [name for name in _HOST_PACKAGES if _version(name) is None]
    if missing:
        yield Finding(
            "packages",
            "problem",
            f"not installed: {', '.join(missing)}; this is the client alone",
            "pip install 'erllama-host[host]'",
        )
    unfit = sorted(_unfit_requirements())
    for text in unfit:
        yield Finding("packages", "warning", text, "pip install --upgrade 'erllama-host[host]'")
    if not missing and not unfit:
        yield ok("packages", ", ".join(f"{name} {_version(name)}" for name in _HOST_PACKAGES))


def _unfit_requirements() -> Iterator[str]:
    """Installed packages whose version is outside of what our metadata asks for (`packaging` comes with circus's tools or pip)."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return
    try:
        requirements = metadata.requires("erllama-host") or []
    except metadata.PackageNotFoundError:
        return  # run from a source tree
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "host"}):
            continue
        version = _version(requirement.name)
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} is installed, {requirement.specifier} is asked for"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_llama(context: Context) -> Iterator[Finding]:
    """llama.cpp loads, and uses what the machine has."""
    if _version("llama-cpp-python") is None:
        return
    try:
        facts = probe_llama()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield Finding(
            "llama.cpp",
            "problem",
            f"llama.cpp cannot be loaded: {_last_line(error)}",
            "install it again: pip install --force-reinstall --no-binary llama-cpp-python 'erllama-host[host]'",
        )
        return
    yield ok("llama.cpp", f"llama-cpp-python {facts['version']}: {backends_text(facts)}")
    yield from _check_gpu(facts)
    yield from check_cpu_flags(facts["system"], _cpu_flags())


def probe_llama() -> dict[str, Any]:
    """Facts of the build, from a child process.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: it cannot be loaded there.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True
    )
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    if not isinstance(facts, dict):
        raise ValueError("the probe did not answer")
    return facts


def backends_text(facts: dict[str, Any]) -> str:
    """`CPU (AVX2, FMA, ...)`, and whether layers can go to a GPU."""
    return f"{'GPU offload' if facts['gpu'] else 'CPU only'}; {', '.join(_built_with(facts['system']))}"


def _built_with(system: str) -> list[str]:
    """What llama.cpp's line of system information says is on: `CPU : AVX2 = 1 | AVX512 = 0 | …`."""
    parts = system.replace(":", "|").split("|")
    return [part.partition("=")[0].strip() for part in parts if part.strip().endswith("= 1")]


def _check_gpu(facts: dict[str, Any]) -> Iterator[Finding]:
    if _NVIDIA_DEVICE.exists() and not facts["gpu"]:
        yield Finding(
            "gpu",
            "warning",
            "there is an NVIDIA GPU, and llama.cpp has been built without CUDA",
            "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python",
        )


def check_cpu_flags(system: str, cpu: frozenset[str]) -> Iterator[Finding]:
    """The build uses the vector instructions that the CPU has."""
    built = {name.upper() for name in _built_with(system)}
    unused = [name for flag, name in _CPU_FLAGS if flag in cpu and name not in built]
    if unused and unused != ["AVX512"]:
        yield Finding(
            "cpu-flags",
            "warning",
            f"the CPU has {', '.join(unused)}, and llama.cpp has been built without",
            "build it on this machine: CMAKE_ARGS=-DGGML_NATIVE=on pip install --force-reinstall --no-cache-dir "
            "--no-binary llama-cpp-python llama-cpp-python",
        )


def _cpu_flags() -> frozenset[str]:
    """Flags of the first CPU; none where the kernel does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(flags.split())
    return frozenset()


def _last_line(error: Exception) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = [line for line in str(text).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
