"""What deploy/ ships is consistent: the container file copies what exists and runs what exists, the unit calls real commands."""

import re
from pathlib import Path

import pytest

from erllama_host.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
CONTAINERFILE = (ROOT / "deploy/Containerfile").read_text(encoding="utf-8")
COMMAND_NAMES = {function.__name__ for _, function in COMMANDS}


def instructions():
    """(instruction, arguments) of every line that is one, continuation lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", CONTAINERFILE, flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_container_file_has_two_stages_and_only_known_instructions():
    names = [name for name, _ in instructions()]
    known = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD", "STOPSIGNAL", "HEALTHCHECK"}
    assert set(names) <= known
    assert names.count("FROM") == 2


def test_everything_that_is_copied_exists():
    for name, arguments in instructions():
        if name == "COPY" and not arguments.startswith("--from"):
            *sources, _ = arguments.split()
            for source in sources:
                assert (ROOT / source).exists(), source


def test_what_is_copied_is_what_the_build_is_sent():
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]
    assert sorted(sent) == sorted(copied)


def test_every_package_of_the_project_is_copied():
    for package in ("erllama_host", "workers", "cache_daemon"):
        assert f"COPY {package} /src/{package}" in CONTAINERFILE


def test_the_container_does_not_run_as_root_and_runs_real_commands():
    text = dict(instructions())
    assert text["USER"] == "erllama"
    assert text["CMD"] == '["up"]'
    assert re.search(r'"erllama", "(\w+)"', text["HEALTHCHECK"])[1] in COMMAND_NAMES


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy").glob("*.service")), ids=lambda path: path.name)
def test_units_call_real_commands(unit):
    called = re.findall(r"^Exec\w+=.*?erllama (\w+)", unit.read_text(encoding="utf-8"), re.MULTILINE)
    assert called
    assert set(called) <= COMMAND_NAMES
