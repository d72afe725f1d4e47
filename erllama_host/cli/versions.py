"""`erllama --version`: host, protocol, and the llama.cpp of the installed binding, without importing it."""

import typer

from erllama_host import __version__

LLAMA_PACKAGE = "llama-cpp-python"


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


def installed(package: str) -> str:
    """The version of an installed package."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def llama_cpp_version() -> str:
    """The binding's version, which pins the llama.cpp it was built from; `doctor` asks the build itself."""
    version = installed(LLAMA_PACKAGE)
    return version if version == "not installed" else f"{LLAMA_PACKAGE} {version}"
