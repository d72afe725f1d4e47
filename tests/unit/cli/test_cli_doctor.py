"""`erllama doctor`: what it prints, what `--fix` does, how it leaves."""

import json

import pytest


@pytest.fixture
def run_dir(host, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "erllama_host.doctor.build._PROBE", 'print(\'{"version": "0", "system": "", "gpu": false, "mmap": true}\')'
    )
    monkeypatch.setattr("erllama_host.doctor.build._cpu_flags", frozenset)
    made = tmp_path / "run"
    made.mkdir(mode=0o755)
    made.chmod(0o755)
    return made


def by_check(ran):
    return {finding["check"]: finding for finding in json.loads(ran.out)["findings"]}


def test_a_problem_leaves_with_1_and_the_fix_with_0(erllama, run_dir):
    ran = erllama("doctor", "--json")
    assert ran.code == 1
    assert by_check(ran)["run"]["fixable"] is True
    ran = erllama("doctor", "--fix", "--json")
    assert ran.code == 0
    assert by_check(ran)["run"]["fixed"] == f"made {run_dir} private"
    assert run_dir.stat().st_mode & 0o777 == 0o700


def test_the_table_tells_what_to_do(erllama, run_dir):
    lines = erllama("doctor").out.splitlines()
    assert lines[0].split("\t") == ["FINDING", "CHECK", "WHAT", "WHAT TO DO"]
    assert lines[1].split("\t")[:2] == ["problem", "run*"]
    assert f"chmod 700 {run_dir}" in lines[1]


def test_what_is_fine_is_shown_on_request(erllama, run_dir):
    run_dir.chmod(0o700)
    assert "\nok\tone-host\t" not in erllama("doctor").out
    assert "\nok\tone-host\t" in erllama("doctor", "--all").out
