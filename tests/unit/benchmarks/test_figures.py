"""Figures, targets and tables of the benchmarks."""

import pytest

from benchmarks.figures import Figure, Target, quantity
from benchmarks.tables import HEADINGS, NUMERIC, figure_row, markdown, plain


def test_a_target_has_one_bound_and_includes_it() -> None:
    assert Target(at_most=0.5).holds(0.5)
    assert not Target(at_most=0.5).holds(0.51)
    assert Target(at_least=0.98).holds(0.98)
    assert not Target(at_least=0.98).holds(0.97)
    for bounds in ({}, {"at_most": 1.0, "at_least": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            Target(**bounds)


def test_targets_read_well() -> None:
    assert str(Target(at_most=1 / 150)) == "≤ 1/150"
    assert str(Target(at_most=0.6)) == "≤ 0.6"
    assert str(Target(at_least=0.98)) == "≥ 0.98"


@pytest.mark.parametrize(
    ("value", "reference", "verdict"),
    [(6.0, 13.0, "met"), (7.0, 13.0, "missed"), (7.0, None, "no peer")],
)
def test_verdicts(value: float, reference: float | None, verdict: str) -> None:
    figure = Figure("warmth", "repeat", value, "ms", "llama-server", reference, Target(at_most=0.5))
    assert figure.verdict == verdict
    assert figure.as_data()["verdict"] == verdict


def test_a_figure_without_target_has_no_verdict() -> None:
    assert Figure("idle", "memory", 12.0, "MB").verdict == ""
    assert Figure("idle", "memory", 12.0, "MB").ratio is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(5228.4, "5228"), (173.4, "173"), (12.94, "12.9"), (2.348, "2.35"), (0.04236, "0.0424"), (0.0, "0")],
)
def test_quantities_keep_the_digits_that_mean_something(value: float, text: str) -> None:
    assert quantity(value) == text


def test_rows_show_tiny_ratios_as_fractions() -> None:
    figure = Figure("warmth", "restart", 20.0, "ms", "llama-server", 5200.0, Target(at_most=1 / 150), "disk")
    assert figure_row(figure) == (
        "warmth",
        "restart (disk)",
        "20.0 ms",
        "llama-server",
        "5200",
        "1/260",
        "≤ 1/150",
        "met",
    )
    assert len(figure_row(figure)) == len(HEADINGS)


def test_plain_tables_align() -> None:
    assert plain(("a", "bb"), [("x", "1"), ("yy", "22")], frozenset({1})).splitlines() == [
        "a   bb",
        "--  --",
        "x    1",
        "yy  22",
    ]


def test_markdown_escapes_bars() -> None:
    table = markdown(HEADINGS, [("a|b",) * len(HEADINGS)], NUMERIC).splitlines()
    assert table[1].count("---:") == len(NUMERIC)
    assert table[2].count("a\\|b") == len(HEADINGS)
