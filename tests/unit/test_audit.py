"""The audit of dependencies: what pip-audit says counts, and the pinned list speaks for the rest."""

import json
import stat
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import audit


def pip_audit(tmp_path: Path, output: str, code: int = 0) -> Path:
    """An executable that says `output`, and keeps what it was asked."""
    (tmp_path / "output").write_text(output)
    executable = tmp_path / "pip-audit"
    executable.write_text(f'#!/bin/sh\ncp "$2" {tmp_path}/asked\ncat {tmp_path}/output\nexit {code}\n')
    executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
    return executable


def judged(name: str, *vulnerabilities: tuple[str, list[str]]) -> dict:
    vulns = [{"id": number, "fix_versions": fixed, "description": ""} for number, fixed in vulnerabilities]
    return {"name": name, "version": "1.0", "vulns": vulns}


def skipped(name: str) -> dict:
    return {"name": name, "skip_reason": "Dependency not found"}


def test_what_is_installed_is_found_with_all_that_it_needs():
    found = audit.installed(audit.declared())
    assert {"pyzmq", "msgspec", "circus", "jinja2", "markupsafe", "pytest", "pluggy"} <= found.keys()
    assert "erllama-host" not in found and "pip" not in found
    assert audit.installed([Requirement("no-such-package")]) == {}


def test_the_list_names_everything_that_is_declared():
    pins = audit.read_list(audit.LIST.read_text())
    assert {audit.canonicalize_name(each.name) for each in audit.declared()} <= pins.keys()
    assert all(each.specifier.contains(pins[audit.canonicalize_name(each.name)]) for each in audit.declared())
    assert audit.read_list(audit.write_list(pins)) == pins


@pytest.mark.parametrize(
    ("version", "problems", "notes"),
    [("1.10", 0, 0), ("1.9", 1, 0), ("1.10.post1", 0, 1), ("2.0", 0, 1)],
)
def test_versions_are_compared_with_the_list(version, problems, notes):
    found = audit.compare({"a": version}, {"a": "1.10", "gone": "1"})
    assert (len(found[0]), len(found[1])) == (problems, notes)


def test_a_package_that_nobody_has_looked_at_is_a_problem():
    (problem,), notes = audit.compare({"new": "1"}, {})
    assert "nobody has looked at it" in problem and notes == []


def test_pip_audit_is_asked_for_exactly_what_is_installed(tmp_path):
    answers = [judged("a", ("PYSEC-1", ["1.1", "2.0"]), ("PYSEC-2", [])), judged("B_c"), skipped("d")]
    executable = pip_audit(tmp_path, json.dumps({"dependencies": answers, "fixes": []}), code=1)
    report = audit.ask_pip_audit(executable, {"a": "1.0", "b-c": "1.0", "d": "1.0"})
    assert report.vulnerable == ["a 1.0: PYSEC-1, mended in 1.1, 2.0", "a 1.0: PYSEC-2"]
    assert report.judged == {"a", "b-c"}, "what it does not know it has not judged"
    assert audit.read_list((tmp_path / "asked").read_text()) == {"a": "1.0", "b-c": "1.0", "d": "1.0"}


@pytest.mark.parametrize("output", ["", "no network", '{"other": 1}'])
def test_a_pip_audit_that_cannot_answer_has_judged_nothing(tmp_path, output):
    report = audit.ask_pip_audit(pip_audit(tmp_path, output, code=1), {"a": "1"})
    assert report == audit.Report([], frozenset())
    assert audit.ask_pip_audit(tmp_path / "not-there", {"a": "1"}) == report


@pytest.mark.parametrize(
    ("pins", "answers", "code", "words"),
    [
        ({"a": "1.0"}, [], 0, "0 judged by pip-audit, 1 compared"),
        ({"a": "1.1"}, [], 1, "PROBLEM: a 1.0 is older than 1.1"),
        ({"a": "1.1"}, [judged("a")], 0, "1 judged by pip-audit, 0 compared"),
        ({"a": "1.0"}, [judged("a", ("PYSEC-1", []))], 1, "PROBLEM: a 1.0: PYSEC-1"),
        ({"a": "0.9"}, [skipped("a")], 0, "a 1.0 is newer than 0.9"),
    ],
)
def test_the_verdict(tmp_path, monkeypatch, capsys, pins, answers, code, words):
    (tmp_path / "constraints.txt").write_text(audit.write_list(pins))
    monkeypatch.setattr(audit, "LIST", tmp_path / "constraints.txt")
    monkeypatch.setattr(audit, "installed", lambda _: {"a": "1.0"})
    executable = pip_audit(tmp_path, json.dumps({"dependencies": answers}) if answers else "")
    monkeypatch.setattr("sys.argv", ["audit", "--pip-audit", str(executable)])
    assert audit.main() == code
    assert words in capsys.readouterr().out
