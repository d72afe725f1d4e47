"""`erllama run FILE`: a private host around one answer, and nothing left behind."""

import os
import tempfile
from pathlib import Path

import psutil
import pytest

from erllama_host.config import Paths
from erllama_host.supervisor.leftovers import shared_memory_directories
from tests.support.command_line import Shell
from tests.support.hosts import eventually
from tests.support.models import smollm2

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(300)]


def test_a_file_is_answered_from_by_a_private_host(tmp_path):
    temporary = Path(tempfile.mkdtemp(prefix="er-"))  # short: sockets lie below it
    paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    shell = Shell(paths, {"TMPDIR": str(temporary)})
    words = ["run", str(smollm2()), "--raw", "The capital of France is", "-n", "8", "--stats", "-o", "n_ctx=512"]
    process = shell.start(*words)
    base = eventually(lambda: next(temporary.glob("erl-*/run")).parent, "the private host's directory")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Paris" in out
    assert "8 generated" in err
    assert list(temporary.iterdir()) == []
    os.rmdir(temporary)
    private = Paths(base / "home", base / "run", base / "erllama.toml")
    assert not any(directory.exists() for directory in shared_memory_directories(private))
    assert not any(base.name in " ".join(each.environ().values()) for each in psutil.Process().children(recursive=True))
    assert not paths.run.exists()
