"""`erllama`: the list of commands, and what happens to errors. Nothing else.

Every error becomes one sentence on stderr and an exit code of exits.py; a traceback appears only after `--debug`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from erllama_host.cli import cache, chat, events, hosting, inspect_model, keys, logs, models, run, versions
from erllama_host.cli.connection import Settings
from erllama_host.cli.doctor import doctor
from erllama_host.cli.exits import Exit, exit_code
from erllama_host.cli.options import flag
from erllama_host.cli.register import add_command, help_text
from erllama_host.errors import ErllamaError

_HOST, _MODELS, _USE, _OPERATE = "The host", "Models", "Use a model", "Operate"

COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (
    (_HOST, hosting.up),
    (_HOST, hosting.down),
    (_HOST, hosting.status),
    (_MODELS, models.ps),
    (_MODELS, models.load),
    (_MODELS, models.unload),
    (_MODELS, models.restart),
    (_MODELS, models.models),
    (_USE, run.run),
    (_USE, chat.chat),
    (_USE, inspect_model.tokenize),
    (_USE, inspect_model.embed),
    (_OPERATE, logs.logs),
    (_OPERATE, events.events),
    (_OPERATE, models.counters),
    (_OPERATE, doctor),
)

GROUPS: tuple[tuple[str, str, str, tuple[tuple[str, Callable[..., Any]], ...]], ...] = (
    (_OPERATE, "cache", "Look into the KV cache, and tidy it.", cache.COMMANDS),
    (_OPERATE, "keys", "Keys of clients on other machines.", keys.COMMANDS),
)

_HELP = """Run GGUF language models, each in its own process, warm across crashes.

Examples:
    $ erllama run model.gguf "Why is the sky blue?"
    $ erllama up -d
    $ erllama load model.gguf --id tiny
    $ erllama chat tiny
"""


def _globals(
    ctx: typer.Context,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint", metavar="ADDRESS", help="Talk to the host at this ZeroMQ address.", show_default=False
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", help="Client key of a remote host (from `erllama keys new`).", show_default=False
        ),
    ] = None,
    server_key: Annotated[
        Path | None, typer.Option("--server-key", metavar="FILE", help="Public key of that host.", show_default=False)
    ] = None,
    debug: Annotated[bool, flag("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the versions.", is_eager=True, callback=versions.show, metavar=""),
    ] = False,
) -> None:
    """Run GGUF language models."""
    ctx.obj = Settings(endpoint=endpoint, key_file=key, server_key_file=server_key, debug=debug)


def make_app() -> typer.Typer:
    """The Typer application with every command."""
    app = typer.Typer(
        name="erllama",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(help=help_text(_HELP))(_globals)
    for panel, function in COMMANDS:
        add_command(app, function, panel=panel)
    for panel, name, summary, commands in GROUPS:
        group = typer.Typer(help=summary, no_args_is_help=True, rich_markup_mode="rich")
        for command, function in commands:
            add_command(group, function, name=command)
        app.add_typer(group, name=name, rich_help_panel=panel)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. Never raises."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = make_app()(words, prog_name="erllama", standalone_mode=False)
    except ErllamaError as error:
        _tell(error, words)
        return int(exit_code(error))
    except (KeyboardInterrupt, typer.Abort):
        return int(Exit.INTERRUPTED)
    except BrokenPipeError:
        return _leave_pipe()
    except SystemExit as leaving:
        return int(leaving.code or 0) if isinstance(leaving.code, int | None) else int(Exit.FAILED)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a person gets a sentence, not a traceback
        return _unexpected(error, words)
    return int(result or 0)


def _tell(error: ErllamaError, words: list[str]) -> None:
    """The error as one sentence, or as one JSON object where JSON was asked for; stdout stays clean either way."""
    if "--debug" in words:
        raise error
    if "--json" in words:
        body = {"code": error.code, "message": error.message, "retryable": error.retryable, "details": error.details}
        print(json.dumps({"error": body}, default=str), file=sys.stderr)
        return
    print(f"erllama: {error.message}", file=sys.stderr)
    for line in error.details.get("last_log_lines", [])[-5:]:
        print(f"    {line}", file=sys.stderr)


def _unexpected(error: Exception, words: list[str]) -> int:
    """A wrong command line (the argument parser's own exceptions), or a bug."""
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "erllama"
        message = error.format_message()
        if message:
            stop = "" if message.endswith((".", "?")) else "."
            print(f"{path}: {message}{stop} Try '{path} --help'.", file=sys.stderr)
        return int(Exit.USAGE)
    if "--debug" in words:
        raise error
    print(
        f"erllama: unexpected {type(error).__name__}: {error} (show the traceback with: erllama --debug ...)",
        file=sys.stderr,
    )
    return int(Exit.INTERNAL)


def _leave_pipe() -> int:
    """The reader of our output has gone (`| head`): be quiet, also when Python flushes stdout at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(Exit.OK)
