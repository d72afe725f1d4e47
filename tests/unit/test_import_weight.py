"""Importing the client is cheap: nothing of the host's side comes with it."""

import json
import subprocess
import sys

import pytest

HEAVY = {"llama_cpp", "circus", "numpy", "jinja2", "tornado", "xxhash", "workers", "cache_daemon", "pynvml"}


def loaded_by(module: str) -> set[str]:
    """Modules that are there after importing `module` in a new process."""
    output = subprocess.run(
        [sys.executable, "-c", f"import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(json.loads(output.stdout))


@pytest.mark.parametrize(
    "module", ["erllama_host", "erllama_host.client", "erllama_host.protocol.kinds", "erllama_host.cli.main"]
)
def test_importing_the_client_side_stays_light(module: str) -> None:
    assert not loaded_by(module) & HEAVY


def test_the_package_itself_imports_almost_nothing() -> None:
    assert not loaded_by("erllama_host") & {"zmq", "msgspec", "typer", "rich", "psutil"}


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("workers.worker", {"llama_cpp", "asyncio", "jinja2", "circus", "tomllib", "tempfile"}),
        ("workers.backend.llama.backend", {"jinja2", "diskcache", "multiprocessing", "llama_cpp.llama"}),
        ("cache_daemon.__main__", {"numpy", "asyncio", "psutil"}),
        ("erllama_host.supervisor.__main__", {"zmq", "asyncio", "circus"}),
        ("erllama_host.controller.__main__", {"numpy", "llama_cpp", "circus", "tornado", "workers"}),
    ],
)
def test_what_must_be_back_soon_imports_nothing_that_it_does_not_need(module: str, spared: set[str]) -> None:
    assert not loaded_by(module) & spared


def test_the_public_names_are_pinned() -> None:
    import erllama_host

    assert erllama_host.__all__ == ["AsyncClient", "Client", "ErllamaError", "__version__"]
    with pytest.raises(AttributeError):
        erllama_host.Clients  # noqa: B018
