"""`erllama events`: the host's journal of what happened: loads, crashes, restarts, give-ups, evictions."""

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.options import FollowFlag, JsonFlag
from erllama_host.cli.output import check_reader, print_table
from erllama_host.errors import ErllamaError

if TYPE_CHECKING:
    from erllama_host.client import Client
    from erllama_host.protocol.calls import Event

_FOLLOW_WAIT_MS = 2000
_ATTEND_WAIT_MS = 1000
_RETRY_S = 0.2
_ALL = 2000
_STYLE_OF_WORD = {
    "gave_up": "bold red",
    "failed": "bold red",
    "crashed": "red",
    "hung": "red",
    "died": "red",
    "killed": "red",
    "out_of_memory": "red",
    "damaged": "red",
    "vanished": "yellow",
    "stopped": "yellow",
    "memory_relief": "yellow",
    "ready": "green",
}


def events(
    ctx: typer.Context,
    follow: FollowFlag = False,
    num: Annotated[int, typer.Option("-n", "--lines", min=1, max=_ALL, help="How many of the latest to show.")] = 20,
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.", show_default=False)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what happened: loads, crashes, restarts, evictions.

    With --json, one object a line.

    Examples:
        $ erllama events -n 50
        $ erllama events -f --model tiny
        $ erllama events -f --json | jq -c 'select(.name == "gave_up")'
    """
    with open_client(ctx) as host:
        found = host.events(since=0, limit=_ALL)
        _print([event for event in found.events if model in (None, event.model)][-num:], as_json, follow)
        while follow:
            found = host.events(since=found.next, limit=_ALL, wait_ms=_FOLLOW_WAIT_MS)
            _print([event for event in found.events if model in (None, event.model)], as_json, follow)
            check_reader()


def follow_events(host: "Client", not_before: float, is_over: Callable[[], bool]) -> None:
    """Print events as they come until `is_over`; a host that is away for a moment, or has too much to do, is waited for.

    Args:
        not_before: wall clock, seconds; the journal also has what happened before the host was started this time.
    """
    since = 0
    while not is_over():
        try:
            found = host.events(since=since, limit=_ALL, wait_ms=_ATTEND_WAIT_MS)
        except ErllamaError as error:
            if not error.retryable:
                raise
            time.sleep(max(_RETRY_S, error.retry_after_s or 0.0))
            continue
        since = found.next
        _print_as_they_come([event for event in found.events if event.at >= not_before])


def _print(found: list["Event"], as_json: bool, follow: bool) -> None:
    from erllama_host.cli.plain import plain
    from erllama_host.cli.screens import events_table

    if as_json:
        for event in found:
            print(json.dumps(plain(event), ensure_ascii=False), flush=True)
    elif follow:
        _print_as_they_come(found)
    else:
        print_table(events_table(found))


def _print_as_they_come(found: Iterable["Event"]) -> None:
    """Lines without a table around them, whose widths nobody knows before the last one."""
    from rich.text import Text

    from erllama_host.cli.output import console
    from erllama_host.cli.screens import event_row

    on_terminal = sys.stdout.isatty()
    for event in found:
        at, name, model, fields = event_row(event)
        if not on_terminal:
            print("\t".join((at, name, model, fields)), flush=True)
            continue
        line = Text.assemble((at, "dim"), "  ", (f"{name:<18}", _style(name)), f" {model:<16} ", (fields, "dim"))
        console().print(line, soft_wrap=True)


def _style(name: str) -> str:
    return next((style for word, style in _STYLE_OF_WORD.items() if word in name), "cyan")
