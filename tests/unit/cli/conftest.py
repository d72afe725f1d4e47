"""Run command lines in this process, against a host that is not there."""

from dataclasses import dataclass

import pytest

from erllama_host.cli import connection
from erllama_host.cli.main import main
from tests.support.fake_client import FakeClient, tiny


@dataclass
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A fake host with one model; private directories."""
    fake = FakeClient(tiny())
    monkeypatch.setattr(connection, "connect", lambda *_arguments, **_options: fake)
    for name in ("HOME", "RUN"):
        monkeypatch.setenv(f"ERLLAMA_{name}", str(tmp_path / name.lower()))
    monkeypatch.delenv("ERLLAMA_CONFIG", raising=False)
    monkeypatch.delenv("ERLLAMA_ENDPOINT", raising=False)
    return fake


@pytest.fixture
def erllama(host, capsys):
    """`erllama("ps", "--json")` → exit code and output."""

    def run(*words: str) -> Ran:
        code = main(list(words))
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
