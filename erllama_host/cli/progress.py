"""Progress on stderr: a bar for loads, a spinner for anything else that may take longer than a second.

Nothing is shown when stderr is not a terminal; results go to stdout and stay clean.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
def load_bar(name: str) -> Iterator["Callable[[LoadProgress], None]"]:
    """A bar for one load; the body hands it every `LoadProgress`."""
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
            completed, total = shares(progress)
            description = f"{name}: {progress.phase}"
            bar.update(task, description=description, completed=completed, total=total, amount=amount_text(progress))

        yield on_progress


def shares(progress: "LoadProgress") -> tuple[float, float | None]:
    """Completed and total for the bar: bytes where known, else the fraction; None makes the bar pulse."""
    if progress.total_bytes:
        return progress.loaded_bytes or progress.fraction * progress.total_bytes, progress.total_bytes
    return progress.fraction, 1.0 if progress.fraction else None


def amount_text(progress: "LoadProgress") -> str:
    """`70.1 MiB of 140.2 MiB`, or per cent, or nothing."""
    from erllama_host.cli.words import bytes_text

    completed, total = shares(progress)
    if progress.total_bytes:
        return f"{bytes_text(completed)} of {bytes_text(progress.total_bytes)}"
    return f"{100 * completed:.0f}%" if total else ""
