"""Tables as plain text and as Markdown. Pure."""

from collections.abc import Sequence

from benchmarks.figures import Figure, quantity

HEADINGS = ("part", "figure", "host", "against", "there", "ratio", "target", "")
NUMERIC = frozenset({2, 4, 5, 6})


def figure_row(figure: Figure) -> tuple[str, ...]:
    """The cells of one figure, in the order of HEADINGS."""
    ratio = figure.ratio
    return (
        figure.part,
        figure.name + (f" ({figure.note})" if figure.note else ""),
        f"{quantity(figure.value)} {figure.unit}".rstrip(),
        figure.against,
        "" if figure.reference is None else quantity(figure.reference),
        "" if ratio is None else _ratio(ratio),
        str(figure.target) if figure.target else "",
        figure.verdict,
    )


def _ratio(ratio: float) -> str:
    return f"1/{1 / ratio:.0f}" if 0 < ratio < 0.02 else f"{ratio:.3f}"


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """Columns padded to their widest cell, numeric ones to the right."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    lines = [_line(headings, widths, numeric), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in rows]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int], numeric: frozenset[int]) -> str:
    cells = [
        cell.rjust(width) if column in numeric else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int] = frozenset()) -> str:
    """A Markdown table; `|` in cells is escaped."""
    rule = ["---:" if column in numeric else "---" for column in range(len(headings))]
    return "\n".join("| " + " | ".join(_escaped(row)) + " |" for row in (headings, rule, *rows))


def _escaped(row: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in row]
