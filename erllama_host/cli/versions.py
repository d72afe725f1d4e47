"""`erllama --version`: host, protocol, and the llama.cpp that is installed here, without importing it."""

import ctypes
from pathlib import Path

import typer

from erllama_host import __version__

LLAMA_PACKAGE = "llama-cpp-python"
HOST_PACKAGES = ("circus", LLAMA_PACKAGE)


def show(value: bool) -> None:
    """Print the versions and leave."""
    if not value:
        return
    for name, version in versions().items():
        print(f"{name} {version}")
    raise typer.Exit()


def versions() -> dict[str, str]:
    """Names and versions; what is not installed here (the client alone) says so."""
    from erllama_host.protocol import PROTOCOL_VERSION

    return {
        "erllama-host": __version__,
        "protocol": str(PROTOCOL_VERSION),
        "llama.cpp": llama_cpp_version(),
        "circus": installed("circus"),
        "pyzmq": installed("pyzmq"),
    }


def require_host() -> None:
    """Refuse to start a host where only the client is installed.

    Raises:
        ConfigError: says what to install.
    """
    from erllama_host.errors import ConfigError

    missing = [package for package in HOST_PACKAGES if installed(package) == "not installed"]
    if missing:
        raise ConfigError(
            f"a host needs {', '.join(missing)}, and only the client is installed here: pip install 'erllama-host[host]'",
            key="erllama-host[host]",
        )


def installed(package: str) -> str:
    """The version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def llama_cpp_version() -> str:
    """Commit of the llama.cpp that the binding was built from; its smallest library says so without importing all of it."""
    version = installed(LLAMA_PACKAGE)
    if version == "not installed":
        return version
    try:
        library = ctypes.CDLL(str(next(_library_folder().glob("libggml-base.*"))))
        commit, ggml = (_text(library, name) for name in ("ggml_commit", "ggml_version"))
    except (StopIteration, OSError, AttributeError):
        return f"unknown ({LLAMA_PACKAGE} {version})"
    return f"{commit} (ggml {ggml}, {LLAMA_PACKAGE} {version})"


def _library_folder() -> Path:
    from importlib.util import find_spec

    spec = find_spec("llama_cpp")
    return Path(next(iter(spec.submodule_search_locations or ())) if spec else "") / "lib"


def _text(library: ctypes.CDLL, name: str) -> str:
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    return str(function().decode(errors="replace"))
