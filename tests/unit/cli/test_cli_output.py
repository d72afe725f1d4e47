"""One result, three forms."""

import io
import json

import pytest
from rich.console import Console

from erllama_host.cli.output import Column, Table, fit, print_json, print_lines, print_table, rich_table
from erllama_host.cli.plain import plain
from erllama_host.protocol.calls import ModelInfo

TABLE = Table(
    (Column("NAME"), Column("STATUS", status=True), Column("MORE", wide=True), Column("NOTE", fold=True)),
    [("tiny", "idle", "wide only", "a note that is longer than a narrow terminal has room for, so it folds")],
    empty="nothing there",
)


def drawn(table, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(rich_table(table, width))
    return console.file.getvalue()


def test_wide_columns_need_a_wide_terminal():
    assert "MORE" not in drawn(TABLE, 80)
    assert "wide only" in drawn(TABLE, 160)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_table_stays_within_its_width(width):
    lines = drawn(TABLE, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "so it folds" in " ".join(" ".join(lines).split())


def test_what_is_too_wide_is_taken_from_the_widest_that_may_give():
    columns = [Column("A", cut=True), Column("B"), Column("C", fold=True)]
    assert fit(columns, [10, 20, 30], 100) == [10, 20, 30]
    assert fit(columns, [10, 20, 30], 54) == [10, 20, 20]
    assert fit(columns, [10, 20, 30], 42) == [9, 20, 9]
    assert fit(columns, [10, 20, 30], 20) == [8, 20, 8]
    assert fit([Column("B")], [20], 10) == [20]


def test_piped_output_is_tab_separated_with_every_column(capsys):
    print_table(TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NAME\tSTATUS\tMORE\tNOTE"
    assert lines[1].split("\t")[:3] == ["tiny", "idle", "wide only"]


def test_cells_never_break_a_line():
    out = io.StringIO()
    print_lines(Table((Column("A"), Column("B")), [("x\ty", "1\n2")]), out)
    assert out.getvalue() == "A\tB\nx y\t1 2\n"


def test_an_empty_table_says_so_on_a_terminal():
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_table(Table(TABLE.columns, [], empty="nothing there"), console)
    assert console.file.getvalue() == "nothing there\n"


def test_markup_in_a_cell_is_text():
    assert "[bold]x" in drawn(Table((Column("A"),), [("[bold]x",)]), 80)


def test_json_has_every_field_and_is_one_line_when_piped(capsys):
    print_json({"models": [ModelInfo(model_id="tiny")]})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert set(json.loads(out)["models"][0]) == set(ModelInfo.__struct_fields__)


def test_plain_makes_bytes_hex():
    assert plain({"key": b"\x01\xff", "list": (1, b"")}) == {"key": "01ff", "list": [1, ""]}
