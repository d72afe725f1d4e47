"""`erllama cache ls | stats | gc | evict | verify | pin | unpin`: look into the KV cache that all models share, and tidy it."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.exits import Exit
from erllama_host.cli.options import JsonFlag, OptionalModelName, flag
from erllama_host.cli.output import note, print_json, print_table, print_tables
from erllama_host.errors import InvalidRequest

RowKey = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="Key of a row, hex, as in finish_key; its first digits, as `ls` shows them, will do.",
        show_default=False,
    ),
]


def list_segments(
    ctx: typer.Context,
    model: OptionalModelName = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many to show.")] = 50,
    whole_keys: Annotated[bool, flag("--keys", help="Whole keys.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List cached segments, the most valuable first.

    Examples:
        $ erllama cache ls tiny -n 10
        $ erllama cache ls --json | jq -r '.segments[] | select(.pinned) | .key'
    """
    from erllama_host.cli.cache_screens import segments_table, shown_note

    with open_client(ctx) as host:
        result = host.cache_ls(model, limit)
    if as_json:
        print_json(result)
        return
    print_table(segments_table(result, whole_keys))
    if left_out := shown_note(result):
        note(left_out)


def stats(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show bytes and budgets per tier, and hits and misses.

    Examples:
        $ erllama cache stats
        $ erllama cache stats --json | jq .tiers.ram.used_bytes
    """
    from erllama_host.cli.cache_screens import stats_tables

    with open_client(ctx) as host:
        result = host.cache_stats()
    if as_json:
        print_json(result)
        return
    print_tables(*stats_tables(result))


def gc(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Drop what nobody can use any more, and give recyclable files back.

    Examples:
        $ erllama cache gc
    """
    from erllama_host.cli.progress import waiting

    with open_client(ctx) as host, waiting("tidying the cache"):
        result = host.cache_gc()
    _print_outcome(result, as_json)


def evict(
    ctx: typer.Context,
    model: OptionalModelName = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Only this row and what continues it.", show_default=False),
    ] = None,
    everything: Annotated[bool, flag("--all", help="Of all models.")] = False,
    pinned: Annotated[bool, flag("--pinned", help="Pinned ones, too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Drop cached segments of a model, of one row, or all.

    What is being read at the moment stays.

    Examples:
        $ erllama cache evict tiny
        $ erllama cache evict --all --pinned
    """
    from erllama_host.cli.progress import waiting

    if sum((model is not None, key is not None, everything)) != 1:
        raise InvalidRequest("say what to evict: exactly one of MODEL, --key and --all", field="model")
    with open_client(ctx) as host, waiting("evicting"):
        result = host.cache_evict(model, key=key, everything=everything, pinned=pinned)
    _print_outcome(result, as_json)


def verify(ctx: typer.Context, model: OptionalModelName = None, as_json: JsonFlag = False) -> int:
    """Compare the checksums of all segments; remove corrupt ones.

    Leaves with 1 if anything was corrupt.

    Examples:
        $ erllama cache verify
    """
    from erllama_host.cli.progress import waiting

    with open_client(ctx) as host, waiting("comparing checksums"):
        result = host.cache_verify(model)
    _print_outcome(result, as_json)
    return Exit.FAILED if result["corrupt_files"] else Exit.OK


def pin(ctx: typer.Context, key: RowKey) -> None:
    """Keep a row from eviction.

    Examples:
        $ erllama cache pin 5f0c...
    """
    with open_client(ctx) as host:
        host.cache_pin(key)
    note("pinned")


def unpin(ctx: typer.Context, key: RowKey) -> None:
    """Let a pinned row be evicted again.

    Examples:
        $ erllama cache unpin 5f0c...
    """
    with open_client(ctx) as host:
        host.cache_unpin(key)
    note("not pinned any more")


def _print_outcome(result: dict[str, Any], as_json: bool) -> None:
    from erllama_host.cli.cache_screens import outcome_table

    if as_json:
        print_json(result)
    else:
        print_table(outcome_table(result))


COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("ls", list_segments),
    ("stats", stats),
    ("gc", gc),
    ("evict", evict),
    ("verify", verify),
    ("pin", pin),
    ("unpin", unpin),
)
