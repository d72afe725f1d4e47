"""Writes what was measured: the table on the terminal, the JSON of a run, and docs/benchmarks.md."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.machine import slug
from benchmarks.setting import ROOT
from benchmarks.tables import HEADINGS, NUMERIC, figure_row, markdown, plain

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks.

    Attributes:
        date: of its start, ISO. duration_s: wall clock. quick: whether repeats were cut.
        parts: name → what it measures, for those that ran. durations_s: how long each ran.
        failures: name → what went wrong, for those that did not finish.
        bounds: figure name → what bounds it, shown when its target is missed.
    """

    date: str
    duration_s: float
    quick: bool
    machine: dict[str, str]
    model: dict[str, str]
    versions: dict[str, str]
    parts: dict[str, str]
    durations_s: dict[str, float]
    figures: Sequence[Figure]
    failures: dict[str, str]
    bounds: dict[str, str]

    def missed(self) -> list[Figure]:
        """Figures on the wrong side of their target."""
        return [figure for figure in self.figures if figure.verdict == "missed"]

    def as_data(self) -> dict[str, object]:
        """Plain data for the JSON file."""
        return {
            "date": self.date,
            "duration_s": round(self.duration_s, 1),
            "quick": self.quick,
            "machine": self.machine,
            "model": self.model,
            "versions": self.versions,
            "parts": self.parts,
            "durations_s": self.durations_s,
            "failures": self.failures,
            "figures": [figure.as_data() for figure in self.figures],
        }


def terminal_table(run: Run) -> str:
    """The one table, and a line that sums it up."""
    rows = [figure_row(figure) for figure in run.figures]
    return plain(HEADINGS, rows, NUMERIC) + "\n\n" + summary(run)


def summary(run: Run) -> str:
    """How many targets are met, missed, and could not be judged."""
    verdicts = [figure.verdict for figure in run.figures if figure.target is not None]
    text = f"{verdicts.count('met')} of {len(verdicts)} targets met, {verdicts.count('missed')} missed"
    if unjudged := verdicts.count("no peer"):
        text += f", {unjudged} not judged for want of a peer: make bench-peers"
    return text + f"; {run.duration_s / 60:.1f} minutes"


def write_json(run: Run, file: Path | None = None) -> Path:
    """Write the run; the default name tells machine and date."""
    if file is None:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{slug(run.machine)}-{run.date[:10]}.json"
    file.write_text(json.dumps(run.as_data(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def write_page(run: Run, file: Path = PAGE) -> None:
    """Write docs/benchmarks.md."""
    file.write_text(page(run), encoding="utf-8")


def page(run: Run) -> str:
    """docs/benchmarks.md as text."""
    sections = [
        "# Benchmarks",
        "This page is written by `make bench`, after `make bench-peers` with every peer. Ratios are what counts: everything "
        "that is compared ran side by side on one machine, with the same prompts, threads, KV types and flash attention, "
        "interleaved, and medians are shown. Times to first token run from the call to the first token read at the client.",
        summary(run) + ".",
        "## Where and with what",
        markdown(("", ""), list({**run.machine, **run.model, **run.versions, "date": run.date[:10]}.items())),
        "## Figures",
        *_part_tables(run),
        *_missed(run),
    ]
    return "\n\n".join(sections) + "\n"


def _part_tables(run: Run) -> list[str]:
    blocks = []
    for part, purpose in run.parts.items():
        rows = [figure_row(figure)[1:] for figure in run.figures if figure.part == part]
        blocks += [f"### {part}", f"{purpose} Alone: `{command(part)}`"]
        if rows:
            blocks.append(markdown(HEADINGS[1:], rows, frozenset(column - 1 for column in NUMERIC)))
        if part in run.failures:
            blocks.append(f"This part did not finish: {run.failures[part]}")
    return blocks


def _missed(run: Run) -> list[str]:
    missed = run.missed()
    if not missed:
        return []
    lines = [f"- **{figure.name}** (against {figure.against}): {bound_of(figure, run.bounds)}" for figure in missed]
    return ["## What bounds the missed targets", "\n".join(lines)]


def bound_of(figure: Figure, bounds: dict[str, str]) -> str:
    """The explanation whose key begins the figure's name."""
    for name, reason in bounds.items():
        if figure.name.startswith(name):
            return reason
    return "not explained yet."


def command(part: str) -> str:
    """How to take one part's figures again."""
    return f"python -m benchmarks --only {part}"
