"""Progress on stderr: a bar for loads, a spinner for anything else that may take longer than a second.

Nothing is shown when stderr is not a terminal; results go to stdout and stay clean.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from erllama_host.protocol.calls import LoadProgress

Say = Callable[[str], None]


@contextmanager
def waiting(text: str) -> Iterator[Say]:
    """A spinner with `text` and the seconds gone while the body runs; what the body gets changes the text."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from erllama_host.cli.output import console

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        task = progress.add_task(text, total=None)

        def say(now: str) -> None:
            progress.update(task, description=f"{text}: {now}")

        yield say


@contextmanager
def load_bar(name: str, file_bytes: int = 0) -> Iterator["Callable[[LoadProgress], None]"]:
    """A bar for one load; the body hands it every `LoadProgress`. `file_bytes`: size of the file, where it is known."""
    if not sys.stderr.isatty():
        yield lambda _progress: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from erllama_host.cli.output import console

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(sys.stderr), transient=True, expand=True) as bar:
        task = bar.add_task(f"{name}: starting", total=None, amount="")

        def on_progress(progress: "LoadProgress") -> None:
            share = progress.fraction or None
            amount = amount_text(progress.fraction, progress.total_bytes or file_bytes)
            bar.update(
                task,
                description=f"{name}: {progress.phase}",
                completed=progress.fraction,
                total=share and 1.0,
                amount=amount,
            )

        yield on_progress


def amount_text(fraction: float, total_bytes: int) -> str:
    """`70.1 MiB of 140 MiB`, or per cent where the size is not known, or nothing before the beginning."""
    from erllama_host.cli.words import bytes_text

    if not fraction:
        return ""
    if total_bytes:
        return f"{bytes_text(fraction * total_bytes)} of {bytes_text(total_bytes)}"
    return f"{fraction:.0%}"


def file_size(path: "Path | None") -> int:
    """Size of a file, 0 where it cannot be seen (a host on another machine)."""
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0
