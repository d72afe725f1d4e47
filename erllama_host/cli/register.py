"""From a function with a docstring to a command with a help text.

Docstrings are plain text: paragraphs, and an `Examples:` block whose lines begin with `$`. The first line is what the list of
commands shows. Typer would read brackets as markup and keep the line breaks of the source; both is undone here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import typer

_EXAMPLES = "Examples:"


def add_command(
    app: typer.Typer, function: Callable[..., Any], name: str | None = None, panel: str | None = None
) -> None:
    """Register `function` under its own name, or `name`, in the part `panel` of the list."""
    app.command(name=name, help=help_text(function.__doc__ or ""), rich_help_panel=panel)(function)


def help_text(docstring: str) -> str:
    """The docstring as rich markup: paragraphs flow, examples keep their lines."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(
        _examples(text) if text.startswith(_EXAMPLES) else _escape(" ".join(text.split())) for text in paragraphs
    )


def _examples(text: str) -> str:
    lines = [_escape(line.strip()) for line in text.splitlines()[1:]]
    return "\n".join([f"[bold]{_EXAMPLES}[/bold]", *(f"[cyan]{line}[/cyan]" for line in lines)])


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
