"""The parts of a run, how long it still takes, and a command line that cannot be carried out."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.parts import PARTS, minutes, seconds_left

NAMES = ("warmth", "agents", "idle")


@pytest.mark.parametrize("name", PARTS)
def test_every_part_runs_and_says_how(name: str) -> None:
    module = import_module(f"benchmarks.{name}")
    assert name == module.PART
    assert module.run.__doc__


def test_a_whole_run_is_meant_to_take_less_than_a_quarter_of_an_hour() -> None:
    assert seconds_left(list(PARTS), 0, 0.0, quick=False) < 15 * 60
    assert seconds_left(list(PARTS), 0, 0.0, quick=True) < 6 * 60


def test_what_is_left_follows_the_pace_of_what_is_done() -> None:
    usual_s = [PARTS[name].usual_s for name in NAMES]
    assert seconds_left(NAMES, 0, 0.0, quick=False) == sum(usual_s)
    assert seconds_left(NAMES, 1, usual_s[0] * 2, quick=False) == pytest.approx(2 * sum(usual_s[1:]))
    assert seconds_left(NAMES, 3, 100.0, quick=False) == 0


def test_minutes() -> None:
    assert [minutes(seconds) for seconds in (0, 59.9, 60, 725)] == ["0:00", "0:59", "1:00", "12:05"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "{tmp}/missing.gguf"], "missing.gguf does not exist"),
        (["--model", "{tmp}/text"], "text is not a GGUF file"),
        (["--model", "{tmp}"], "is a directory"),
        (["--json", "{tmp}/missing/results.json"], "cannot write"),
        (["--json", "{tmp}"], "cannot write"),
        (["--only", "warmth", "nonsense"], "invalid choice: 'nonsense'"),
        (["--slow"], "unrecognized arguments: --slow"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no model")
    with pytest.raises(SystemExit) as ended:
        main([argument.format(tmp=tmp_path) for argument in arguments])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
