"""What the cache daemon answers, as tables. Pure."""

from collections.abc import Mapping
from typing import Any

from erllama_host.cli.output import Column, Table
from erllama_host.cli.words import bytes_text


def segments_table(result: Mapping[str, Any]) -> Table:
    """`erllama cache ls`."""
    return Table((), [], empty="The cache is empty.")


def stats_tables(result: Mapping[str, Any]) -> list[Table]:
    """`erllama cache stats`."""
    return []


def outcome_table(result: Mapping[str, Any]) -> Table:
    """What a tidying operation did: one line per number."""
    rows = [(name.replace("_", " "), number_text(name, value)) for name, value in result.items()]
    return Table((Column("DID"), Column("COUNT", "right")), rows, empty="There was nothing to do.")


def number_text(name: str, value: Any) -> str:
    """A number by its name: bytes as bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            bytes_text(value)
            if name.endswith("bytes")
            else f"{value:,.0f}"
            if float(value).is_integer()
            else f"{value:,.2f}"
        )
    return str(value)
