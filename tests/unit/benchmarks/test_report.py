"""Results and the generated page of the benchmarks."""

import json
from pathlib import Path

from benchmarks.figures import Figure, Target
from benchmarks.report import Run, page, summary, terminal_table, write_json

FIGURES = (
    Figure("warmth", "exact repeat", 6.0, "ms", "llama-server", 13.0, Target(at_most=0.5), "live"),
    Figure("warmth", "after another conversation took over", 30.0, "ms", "llama-server", 38.0, Target(at_most=0.6)),
    Figure("agents", "first burst", 500.0, "ms", "llama-server", None, Target(at_most=1 / 8)),
    Figure("idle", "memory of cache", 40.0, "MB"),
)


def _run(**changes: object) -> Run:
    values = {
        "date": "2026-01-02T03:04:05+00:00",
        "duration_s": 90.0,
        "quick": False,
        "machine": {"cpu": "A CPU @ 3 GHz", "cores": "2"},
        "model": {"model": "small.gguf"},
        "versions": {"python": "3.11"},
        "parts": {"warmth": "Warm prompts.", "agents": "Agents.", "idle": "Rest."},
        "durations_s": {"warmth": 60.0, "agents": 20.0, "idle": 10.0},
        "figures": FIGURES,
        "failures": {},
        "bounds": {"after another": "The copy of 47 MB."},
    }
    return Run(**{**values, **changes})


def test_the_summary_counts_verdicts() -> None:
    assert (
        summary(_run())
        == "1 of 3 targets met, 1 missed, 1 not judged for want of a peer: make bench-peers; 1.5 minutes"
    )


def test_the_table_has_a_line_for_every_figure() -> None:
    lines = terminal_table(_run()).splitlines()
    assert len(lines) == 2 + len(FIGURES) + 2
    assert "exact repeat (live)" in lines[2]
    assert lines[2].endswith("met")


def test_the_page_gives_commands_and_explains_what_was_missed() -> None:
    text = page(_run(failures={"agents": "OSError: gone"}))
    assert "`python -m benchmarks --only warmth`" in text
    assert "This part did not finish: OSError: gone" in text
    assert "- **after another conversation took over** (against llama-server): The copy of 47 MB." in text
    assert "A CPU @ 3 GHz" in text


def test_a_miss_nobody_explained_says_so() -> None:
    assert "not explained yet" in page(_run(bounds={}))


def test_a_page_without_misses_has_no_such_section() -> None:
    assert "What bounds" not in page(_run(figures=FIGURES[:1]))


def test_the_json_file_holds_every_figure(tmp_path: Path) -> None:
    data = json.loads(write_json(_run(), tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [figure["name"] for figure in data["figures"]] == [figure.name for figure in FIGURES]
    assert data["figures"][0]["ratio"] == 6.0 / 13.0
    assert data["figures"][0]["target"] == "≤ 0.5"
