"""What the cache daemon answers, as tables. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from erllama_host.cli.output import Column, Table
from erllama_host.cli.words import bytes_text, count_text, duration_text, share_text

_SHOWN_KEY_DIGITS = 12


def segments_table(result: Mapping[str, Any], whole_keys: bool) -> Table:
    """`erllama cache ls`."""
    columns = (
        Column("KEY"),
        Column("KIND"),
        Column("MODEL", cut=True),
        Column("TOKENS", "right"),
        Column("SIZE", "right"),
        Column("TIERS"),
        Column("HITS", "right"),
        Column("IDLE", "right", wide=True),
        Column("AGE", "right", wide=True),
        Column("SAVED BY", wide=True),
        Column("NOTE"),
    )
    rows = [
        (
            row["key"] if whole_keys else row["key"][:_SHOWN_KEY_DIGITS],
            row["kind"],
            row["model"],
            f"{row['start']}-{row['end']}",
            bytes_text(row["bytes"]),
            "+".join(row["tiers"]),
            str(row["hits"]),
            duration_text(row["idle_s"]),
            duration_text(row["age_s"]),
            row["reason"],
            " ".join(word for word in ("pinned", "leased", "superseded") if row[word]),
        )
        for row in result["segments"]
    ]
    return Table(columns, rows, empty="The cache is empty.")


def stats_tables(result: Mapping[str, Any]) -> list[Table]:
    """`erllama cache stats`: tiers, models, counters."""
    return [_tiers_table(result["tiers"]), _models_table(result["models"]), _counters_table(result["counters"])]


def _tiers_table(tiers: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = (
        Column("TIER"),
        Column("KIND"),
        Column("USED", "right"),
        Column("BUDGET", "right"),
        Column("FULL", "right"),
        Column("SEGMENTS", "right"),
        Column("RECYCLABLE", "right", wide=True),
        Column("RESERVED", "right", wide=True),
        Column("PATH", fold=True),
    )
    rows = [
        (
            name,
            tier["kind"],
            bytes_text(tier["used_bytes"]),
            bytes_text(tier["budget_bytes"]),
            share_text(tier["used_bytes"], tier["budget_bytes"]),
            str(tier.get("segments", 0)),
            bytes_text(tier["recyclable_bytes"]),
            bytes_text(tier["reserved_bytes"]),
            str(tier["path"]),
        )
        for name, tier in tiers.items()
    ]
    return Table(columns, rows)


def _models_table(models: Mapping[str, Mapping[str, float]]) -> Table:
    columns = (
        Column("MODEL", cut=True),
        Column("SEGMENTS", "right"),
        Column("TOKENS", "right"),
        Column("SIZE", "right"),
        Column("EXACT", "right"),
        Column("PARTIAL", "right"),
        Column("MISSES", "right"),
        Column("SAVES", "right"),
        Column("EVICTED", "right"),
    )
    rows = [
        (
            name,
            str(counts.get("segments", 0)),
            count_text(counts.get("tokens", 0)),
            bytes_text(counts.get("bytes", 0)),
            *(count_text(counts.get(key, 0)) for key in ("hits_exact", "hits_partial", "misses", "saves", "evictions")),
        )
        for name, counts in models.items()
    ]
    return Table(columns, rows, empty="No model has used the cache yet.")


def _counters_table(counters: Mapping[str, float]) -> Table:
    rows = [(name, number_text(name, value)) for name, value in sorted(counters.items())]
    return Table((Column("COUNTER"), Column("VALUE", "right")), rows, empty="Nothing has been counted yet.")


def outcome_table(result: Mapping[str, Any]) -> Table:
    """What a tidying operation did: one line per number."""
    rows = [(name.removesuffix("_bytes").replace("_", " "), number_text(name, value)) for name, value in result.items()]
    return Table((Column("RESULT"), Column("VALUE", "right")), rows)


def number_text(name: str, value: float) -> str:
    """A number by its name: bytes as bytes."""
    if name.endswith("bytes"):
        return bytes_text(value) if value else "0 B"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def shown_note(result: Mapping[str, Any]) -> str:
    """How many segments are not shown; empty when all are."""
    shown: Sequence[Any] = result["segments"]
    return f"{len(shown)} of {result['total']} segments; more with --limit" if len(shown) < result["total"] else ""
