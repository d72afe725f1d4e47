"""`erllama cache ls | stats | gc | evict | verify`: look into the KV cache that all models share, and tidy it."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.exits import Exit
from erllama_host.cli.options import JsonFlag, OptionalModelName, flag
from erllama_host.cli.output import note, print_json, print_table
from erllama_host.errors import InvalidRequest


def list_segments(
    ctx: typer.Context,
    model: OptionalModelName = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="How many to show.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """List cached segments, the most valuable first.

    Examples:
        $ erllama cache ls tiny -n 10
    """
    from erllama_host.cli.cache_screens import segments_table

    result = _call(ctx, "ls", model=model, limit=limit)
    if as_json:
        print_json(result)
    else:
        print_table(segments_table(result))


def stats(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show bytes and budgets per tier, and hits and misses.

    Examples:
        $ erllama cache stats
    """
    from erllama_host.cli.cache_screens import stats_tables

    result = _call(ctx, "stats")
    if as_json:
        print_json(result)
        return
    for table in stats_tables(result):
        print_table(table)


def gc(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Drop what nobody can use any more, and count the bytes anew.

    Examples:
        $ erllama cache gc
    """
    _tidy(ctx, as_json, "gc")


def evict(
    ctx: typer.Context,
    model: OptionalModelName = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Only this row and what continues it (hex).", show_default=False)
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
    if sum((model is not None, key is not None, everything)) != 1:
        raise InvalidRequest("say what to evict: exactly one of MODEL, --key and --all", field="model")
    _tidy(ctx, as_json, "evict", model=model, key=key, everything=everything, pinned=pinned)


def verify(ctx: typer.Context, model: OptionalModelName = None, as_json: JsonFlag = False) -> int:
    """Compare the checksums of all segments; remove corrupt ones.

    Leaves with 1 if anything was corrupt.

    Examples:
        $ erllama cache verify
    """
    result = _tidy(ctx, as_json, "verify", model=model)
    return Exit.FAILED if result.get("corrupt") else Exit.OK


def pin(
    ctx: typer.Context, key: Annotated[str, typer.Argument(help="Key of the row (hex), as in finish_key.")]
) -> None:
    """Keep a row from eviction.

    Examples:
        $ erllama cache pin 5f0c...
    """
    _call(ctx, "pin", key=key)
    note("pinned")


def unpin(ctx: typer.Context, key: Annotated[str, typer.Argument(help="Key of the row (hex).")]) -> None:
    """Let a pinned row be evicted again.

    Examples:
        $ erllama cache unpin 5f0c...
    """
    _call(ctx, "unpin", key=key)
    note("not pinned any more")


def _call(ctx: typer.Context, op: str, **arguments: Any) -> dict[str, Any]:
    """One operation of the cache daemon, through the host; arguments that are not set are left out."""
    from erllama_host.cli.progress import waiting

    with open_client(ctx) as host, waiting(f"cache {op}"):
        result: dict[str, Any] = host.cache(
            op, **{name: value for name, value in arguments.items() if value not in (None, False)}
        )
    return result


def _tidy(ctx: typer.Context, as_json: bool, op: str, **arguments: Any) -> dict[str, Any]:
    from erllama_host.cli.cache_screens import outcome_table

    result = _call(ctx, op, **arguments)
    if as_json:
        print_json(result)
    else:
        print_table(outcome_table(result))
    return result


COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("ls", list_segments),
    ("stats", stats),
    ("gc", gc),
    ("evict", evict),
    ("verify", verify),
    ("pin", pin),
    ("unpin", unpin),
)
