"""Directories of private hosts: removed by their owner, and by the next one where the owner was killed."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from erllama_host.config import Paths
from erllama_host.supervisor import private_paths
from erllama_host.supervisor.private import OWNED


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def _shared_memory(paths: Paths) -> Path:
    """Where tier `ram` lies when there is no room on tmpfs."""
    return Path(tempfile.gettempdir()) / f"erllama-{os.geteuid()}-{paths.instance}"


def _abandoned(temp: Path) -> tuple[Path, Path]:
    """What a killed process leaves: nobody locks the directory. It, and the shared memory."""
    base = temp / f"{OWNED}dead"
    paths = Paths(home=base / "home", run=base / "run", config_file=base / "erllama.toml")
    paths.run.mkdir(parents=True)
    (paths.run / "clients.sock").touch()
    memory = _shared_memory(paths)
    memory.mkdir()
    (memory / "segment").write_bytes(b"x" * 4096)
    return base, memory


def test_everything_goes_with_the_block(temp: Path) -> None:
    with private_paths() as paths:
        paths.prepare()
        _shared_memory(paths).mkdir()
        assert len(list(temp.iterdir())) == 2
    assert not list(temp.iterdir())


def test_the_next_one_removes_what_a_killed_one_left(temp: Path) -> None:
    base, memory = _abandoned(temp)
    with private_paths():
        assert not base.exists()
        assert not memory.exists()


def test_two_live_ones_leave_each_other_alone(temp: Path) -> None:
    with private_paths() as first, private_paths() as second:
        assert first.run.parent.is_dir()
        assert first.run.parent != second.run.parent


def test_a_link_is_not_followed(temp: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (temp / f"{OWNED}link").symlink_to(elsewhere)
    with private_paths():
        assert (elsewhere / "precious").exists()
