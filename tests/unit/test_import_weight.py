"""Importing the client is cheap: nothing of the host's side comes with it."""

import json
import subprocess
import sys

import pytest

_PROBE = "import json, sys; import {module}; print(json.dumps(sorted(sys.modules)))"
HEAVY = ("llama_cpp", "circus", "numpy", "jinja2", "tornado", "xxhash", "workers", "cache_daemon", "pynvml")


@pytest.mark.parametrize(
    "module", ["erllama_host", "erllama_host.client", "erllama_host.protocol.kinds", "erllama_host.cli.main"]
)
def test_importing_the_client_side_stays_light(module: str) -> None:
    output = subprocess.run(
        [sys.executable, "-c", _PROBE.format(module=module)], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in json.loads(output.stdout)}
    assert not loaded & set(HEAVY)


def test_the_package_itself_imports_almost_nothing() -> None:
    output = subprocess.run(
        [sys.executable, "-c", _PROBE.format(module="erllama_host")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = {name.partition(".")[0] for name in json.loads(output.stdout)}
    assert not loaded & {"zmq", "msgspec", "typer", "rich", "psutil"}


def test_the_public_names_are_pinned() -> None:
    import erllama_host

    assert erllama_host.__all__ == ["AsyncClient", "Client", "ErllamaError", "__version__"]
    with pytest.raises(AttributeError):
        erllama_host.Clients  # noqa: B018
