"""`erllama ps --watch`: a live screen of what every model is doing."""

import sys
import time
from typing import TYPE_CHECKING

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.output import print_json, print_lines, rich_table
from erllama_host.cli.screens import is_busy, models_table
from erllama_host.cli.words import bytes_text, duration_text, plural, rate_text
from erllama_host.errors import HostUnavailable, Timeout
from erllama_host.protocol.calls import HostStatus

if TYPE_CHECKING:
    from rich.console import Group

    from erllama_host.client import Client


def watch_models(ctx: typer.Context, interval_s: float, as_json: bool) -> None:
    """Look every `interval_s` until Ctrl-C. Piped, or with JSON, every look is printed below the last."""
    with open_client(ctx, impatient=True) as host:
        if as_json or not sys.stdout.isatty():
            _print_looks(host, interval_s, as_json)
        else:
            _show_screen(host, interval_s)


def _print_looks(host: "Client", interval_s: float, as_json: bool) -> None:
    while True:
        status = host.host_status()
        if as_json:
            print_json({"models": status.models})
        else:
            print_lines(models_table(status.models))
        time.sleep(interval_s)


def _show_screen(host: "Client", interval_s: float) -> None:
    """A host that goes away stays on the screen as such, and comes back when it does: that is when people watch."""
    from rich.live import Live

    from erllama_host.cli.output import console

    screen = console()
    status, seen_at = host.host_status(), time.monotonic()
    with Live(render(status, screen.width), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            trouble = ""
            try:
                status, seen_at = host.host_status(), time.monotonic()
            except (HostUnavailable, Timeout) as error:
                trouble = f"{error.message}\nThe figures are {duration_text(time.monotonic() - seen_at)} old."
            live.update(render(status, screen.width, trouble), refresh=True)


def render(status: HostStatus, width: int, trouble: str = "") -> "Group":
    """One look: a headline, the models, and a line of trouble if there is any."""
    from rich.console import Group
    from rich.text import Text

    parts: list[object] = [Text(headline(status) + "\n", style="bold")]
    table = models_table(status.models)
    parts.append(rich_table(table, width) if table.rows else Text(table.empty, style="dim"))
    for model in status.models:
        if model.status == "failed":
            parts.append(Text(f"{model.model_id}: {model.last_failure or 'failed'}", style="red"))
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    parts.append(Text("\nCtrl-C leaves", style="dim"))
    return Group(*parts)  # type: ignore[arg-type]


def headline(status: HostStatus) -> str:
    """The whole host in one line."""
    busy = [model for model in status.models if is_busy(model)]
    memory = sum(model.resident_bytes for model in status.models) + sum(
        process.resident_bytes for process in status.processes if not process.role.startswith("model:")
    )
    return " · ".join(
        (
            f"erllama {status.hello.version}",
            f"up {duration_text(max(0.0, time.time() - status.hello.started_at))}",
            f"{plural(len(status.models), 'model')}, {len(busy)} busy",
            f"{rate_text(sum(model.tokens_per_s for model in busy))} tok/s",
            f"memory {bytes_text(memory)}",
            "cache up" if status.hello.cache_available else "cache away",
        )
    )
