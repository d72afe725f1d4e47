"""What commands print: a table on a terminal, tab-separated lines when piped, JSON with `--json`.

Commands describe their result once, as a `Table` and as plain data; this module chooses the form. Notes for the person at the
keyboard (`note`) go to stderr, so that stdout can always be piped.
"""

import json
import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

WIDE_COLUMNS = 120
"""From this width on a terminal shows the columns marked `wide` too."""

_GAP = 2
_NARROWEST = 8

STATUS_STYLE = {
    "idle": "green",
    "running": "green",
    "active": "green",
    "ok": "green",
    "prefilling": "cyan",
    "generating": "cyan",
    "loading": "yellow",
    "restarting": "yellow",
    "stopping": "yellow",
    "warning": "yellow",
    "failed": "bold red",
    "problem": "bold red",
    "stopped": "red",
}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        wide: shown on wide terminals only, and when piped. status: coloured by its first word.
        cut, fold: what gives way on a narrow terminal: long text is cut, or continues on the next line.
    """

    title: str
    justify: Literal["left", "right"] = "left"
    wide: bool = False
    status: bool = False
    cut: bool = False
    fold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts under columns; `empty` is said instead of a table without rows."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    empty: str = ""


def console(stream: TextIO | None = None) -> "Console":
    """A rich console on stdout, or on `stream`; without colour where NO_COLOR says so or nothing would show it."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, highlight=False, soft_wrap=False)


def check_reader() -> None:
    """End what follows something for ever when nobody reads it any more: a quiet log would not notice before its next line.

    Raises:
        BrokenPipeError: the other end of standard output is closed.
    """
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a descriptor at all
        return
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0)):
        raise BrokenPipeError


def print_json(value: Any) -> None:
    """One JSON document on stdout: indented on a terminal, one line when piped."""
    from erllama_host.cli.plain import plain

    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(plain(value), indent=indent, ensure_ascii=False), flush=True)


def print_table(table: Table, target: "Console | None" = None) -> None:
    """Print for a person when stdout is a terminal, else as lines of tab-separated cells below a line of titles."""
    if target is None and not sys.stdout.isatty():
        print_lines(table)
        return
    screen = target or console()
    if not table.rows:
        screen.print(table.empty, style="dim", markup=False)
        return
    screen.print(rich_table(table, screen.width))


def print_tables(*tables: Table) -> None:
    """Several tables, with a blank line before each, so that piped ones can be told apart, too."""
    for table in tables:
        print()
        print_table(table)


def print_lines(table: Table, stream: TextIO | None = None) -> None:
    """Tab-separated lines; a tab or line break inside a cell becomes a space."""
    out = stream or sys.stdout
    for row in [[column.title for column in table.columns], *table.rows]:
        out.write("\t".join(" ".join(cell.split()) for cell in row) + "\n")
    out.flush()


def rich_table(table: Table, width: int) -> "RichTable":
    """The table for a terminal of `width` columns."""
    from rich.cells import cell_len
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = [index for index, column in enumerate(table.columns) if width >= WIDE_COLUMNS or not column.wide]
    columns = [table.columns[index] for index in shown]
    longest = [max(cell_len(text) for text in (table.columns[i].title, *(row[i] for row in table.rows))) for i in shown]
    made = RichTable(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold dim")
    for column, column_width in zip(columns, fit(columns, longest, width), strict=True):
        overflow: Literal["fold", "ellipsis"] = "fold" if column.fold else "ellipsis"
        made.add_column(
            column.title, justify=column.justify, no_wrap=not column.fold, overflow=overflow, width=column_width
        )
    for row in table.rows:
        styles = [
            STATUS_STYLE.get(row[index].split(" ")[0], "") if table.columns[index].status else "" for index in shown
        ]
        made.add_row(*(Text(row[index], style=style) for index, style in zip(shown, styles, strict=True)))
    return made


def fit(columns: Sequence[Column], longest: Sequence[int], width: int) -> list[int]:
    """Widths of columns whose longest cells are `longest`, in a terminal of `width`.

    What is too much is taken from the columns that may give (`cut`, `fold`), always from the widest of them, down to a minimum.
    """
    widths = list(longest)
    giving = [index for index, column in enumerate(columns) if column.cut or column.fold]
    while sum(widths) + _GAP * (len(widths) - 1) > width:
        widest = max(giving, key=lambda index: widths[index], default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    return widths


def note(text: str) -> None:
    """One line for the person at the keyboard, on stderr."""
    print(text, file=sys.stderr, flush=True)
