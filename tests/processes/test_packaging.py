"""Wheel and sdist build, and the client installs and runs alone in an empty environment."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    archive = subprocess.run(
        ["tar", "-c", "--null", "--files-from=-"], cwd=ROOT, input=listing, capture_output=True, check=True, timeout=60
    )
    subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True, timeout=60)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(source)], check=True, timeout=300, capture_output=True
    )
    return out


def test_the_wheel_has_the_packages_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"erllama_host", "workers", "cache_daemon"}
    for needed in (
        "erllama_host/py.typed",
        "erllama_host/supervisor/circus.ini",
        "workers/__main__.py",
        "cache_daemon/__main__.py",
    ):
        assert needed in names


def test_the_sdist_has_what_a_build_needs(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "erllama_host/__init__.py"} <= names


def test_the_client_installs_alone_and_compiles_nothing(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--only-binary=:all:", str(wheel)]
    subprocess.run(install, check=True, timeout=300, capture_output=True)
    probe = (
        "import erllama_host.client, importlib.util as u; print([n for n in ('llama_cpp', 'circus') if u.find_spec(n)])"
    )
    found = subprocess.run(
        [str(python), "-c", probe], check=True, timeout=60, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout.strip() == "[]"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ERLLAMA_RUN": str(tmp_path / "run")}
    erllama = tmp_path / "env" / "bin" / "erllama"
    status = subprocess.run(
        [str(erllama), "status"], timeout=60, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert status.returncode == 3
    assert "erllama up" in status.stderr
    assert "Traceback" not in status.stderr
