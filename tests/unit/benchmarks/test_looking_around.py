"""What the benchmarks read off processes, requirement lines and command lines."""

from pathlib import Path

import pytest

from benchmarks.llama_server import server_command
from benchmarks.machine import slug
from benchmarks.processes import role_of
from benchmarks.requirements import closure
from benchmarks.setting import find_llama_server
from benchmarks.systems import Timing, gaps_within


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["python", "-m", "cache_daemon"], "cache"),
        (["python", "-m", "erllama_host.controller"], "controller"),
        (["python", "-m", "workers", "tiny"], "model:tiny"),
        (["python", "-m", "circus.circusd", "circus.ini"], "circusd"),
        (["python", "-m", "erllama_host.supervisor"], "helper"),
        (["python", "-m"], "helper"),
        ([], "helper"),
    ],
)
def test_roles_are_told_by_the_command_line(command: list[str], role: str) -> None:
    assert role_of(command) == role


def test_the_closure_of_requirements_follows_extras() -> None:
    requirements = {
        "app": ["Lib_A>=1,<2", 'big[fast]==2; extra == "host"', 'tool; extra == "dev"'],
        "big": ["lib-a", 'quick>=1; extra == "fast"', 'other; python_version < "3.9"'],
    }
    assert closure("app", "", lambda name: requirements.get(name, ())) == ["app", "lib-a"]
    assert closure("app", "host", lambda name: requirements.get(name, ())) == ["app", "big", "lib-a", "other", "quick"]


def test_slugs_are_file_names() -> None:
    assert slug({"cpu": "AMD EPYC (TM) @ 3.0", "cores": "2"}) == "amd-epyc-tm-3-0-2-cores"


def test_the_peer_runs_with_the_same_threads_and_types() -> None:
    one = server_command(Path("server"), Path("m.gguf"), 1234, n_seq_max=1, n_ctx=4096)
    several = server_command(Path("server"), Path("m.gguf"), 1234, n_seq_max=4, n_ctx=4096)
    assert one[one.index("-t") + 1] == "2"
    assert one[one.index("-ctk") + 1] == "f16"
    assert "-kvu" not in one
    assert "-kvu" in several


def test_a_peer_that_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(tmp_path))
    with pytest.raises(SystemExit, match="LLAMA_SERVER_BIN"):
        find_llama_server()


def test_gaps_count_when_they_touch_the_interval() -> None:
    stream = Timing(called_at_s=0.0, arrivals_ms=(100.0, 200.0, 900.0, 1000.0), total_ms=1000.0, num_tokens=4)
    assert gaps_within(stream, 0.25, 0.65) == pytest.approx([700.0])
