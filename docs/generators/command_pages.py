"""The command line's reference, its exit codes, and the shape of what `--json` prints."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
import typer

from erllama_host.cli.exits import MEANING
from erllama_host.cli.main import COMMANDS, GROUPS, make_app
from erllama_host.client.results import StreamStats
from erllama_host.protocol.calls import AdapterInfo, Event, HostHello, HostStatus, ModelInfo, ProcessInfo
from erllama_host.protocol.inference import CacheReport

_HEAD = """# The command line

Options of `erllama` itself come before the command, as in
`erllama --endpoint tcp://gpu-box:7700 --key alice.key_secret --server-key server.key ps`.
Exit codes and the JSON of every command are in [operating](../guides/operating.md).

"""

JSON: dict[str, str] = {
    "ps": '`{"models": [ModelInfo, ...]}`; with `--watch` one such line per look',
    "load": "`ModelInfo`",
    "restart": "`ModelInfo`",
    "models": '`{"pids": {model_id: [pid, ...]}}`',
    "counters": '`{"counters": {name: number}}`',
    "status": "`HostStatus`",
    "run": '`{"text", "thinking", "tool_calls", "finish_reason", "stats": StreamStats}`',
    "tokenize": '`{"tokens": [id, ...], "pieces": [text, ...]}`',
    "embed": '`{"n_embd": number, "vectors": [[number, ...], ...]}`',
    "events": "one `Event` a line",
    "logs": 'one object a line: the structured line, or `{"at", "process", "event": "text", "text"}`',
    "doctor": '`{"findings": [{"check", "severity", "what", "todo", "fixable", "fixed"}, ...], "problems": number}`',
    "cache ls": '`{"segments": [{"key", "kind", "model", "start", "end", "bytes", "tiers", "reason", "hits", "idle_s", "age_s", '
    '"pinned", "leased", "superseded"}, ...], "total": number}`',
    "cache stats": '`{"tiers": {name: {"kind", "path", "used_bytes", "budget_bytes", ...}}, "models": {model_id: '
    '{counter: number}}, "segments", "leases", "reservations", "workers", "recovering", "recovery", '
    '"counters": {name: number}}`',
    "cache gc": '`{"dropped_segments", "freed_bytes", "freed_recyclable_bytes"}`',
    "cache evict": '`{"dropped_segments", "freed_bytes", "kept_segments"}`',
    "cache verify": '`{"checked_files", "corrupt_files"}`',
    "keys new": '`{"name", "role", "public_key", "secret_key_file", "server_key_file"}`',
    "keys list": '`{"keys": [{"name", "role", "public_key"}, ...]}`',
}
"""What every command with `--json` prints; a test compares the names with the commands."""

_TYPES: tuple[type[msgspec.Struct], ...] = (
    ModelInfo,
    AdapterInfo,
    HostStatus,
    HostHello,
    ProcessInfo,
    Event,
    StreamStats,
    CacheReport,
)


def exit_codes() -> str:
    """The table of exit codes."""
    return "\n".join(
        ["| code | meaning |", "|---|---|", *(f"| {int(code)} | {meaning} |" for code, meaning in MEANING.items())]
    )


def json_shapes() -> str:
    """Which command prints what, and the fields of the types named there."""
    parts = ["| command | prints |", "|---|---|", *(f"| `{name}` | {shape} |" for name, shape in JSON.items()), ""]
    for struct in _TYPES:
        fields = ", ".join(f"`{field.name}` {_type_text(field.type)}" for field in msgspec.structs.fields(struct))
        parts += [f"**{struct.__name__}**: {fields}.", ""]
    return "\n".join(parts)


def _type_text(declared: Any) -> str:
    options = [option for option in get_args(declared) if option is not type(None)]
    origin = get_origin(declared)
    if origin is list:
        return f"[{_type_text(options[0])}]"
    if origin is dict:
        return f"{{{_type_text(options[0])}: {_type_text(options[1])}}}"
    if options:
        return f"{_type_text(options[0])} or null"
    return {str: "text", int: "integer", float: "number", bool: "boolean", bytes: "hex", Any: "any"}.get(
        declared, getattr(declared, "__name__", "any")
    )


def commands() -> str:
    """The page of all commands."""
    root: Any = typer.main.get_command(make_app())
    parts = [_HEAD, "## Options of `erllama`\n", _parameters(root), ""]
    for words, function in every_command():
        command = root
        for word in words:
            command = command.commands[word]
        parts += [f"## `erllama {' '.join(words)}`\n", _text(function.__doc__ or ""), "", _parameters(command), ""]
    return "\n".join(parts).rstrip() + "\n"


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words and function of every command, in the order of the help text."""
    for _, function in COMMANDS:
        yield (function.__name__,), function
    for _, group, _, members in GROUPS:
        for name, function in members:
            yield (group, name), function


def _text(docstring: str) -> str:
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    out = []
    for text in paragraphs:
        if text.startswith("Examples:"):
            lines = "\n".join(line.strip() for line in text.splitlines()[1:])
            out.append(f"```console\n{lines}\n```")
        else:
            out.append(" ".join(text.split()))
    return "\n\n".join(out)


def _parameters(command: Any) -> str:
    rows = ["| argument or option | meaning |", "|---|---|"]
    for parameter in command.params:
        names = ", ".join(
            f"`{name}`"
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name not in ("--install-completion", "--show-completion")
        )
        help_text = (
            (getattr(parameter, "help", None) or "").replace("\\[", "[").replace("<", "&lt;").replace("|", "\\|")
        )
        if not names:
            continue
        if not names.startswith("`-"):
            names = f"`{parameter.metavar or parameter.name.upper()}`".replace("|", "\\|")
        rows.append(f"| {names} | {help_text} |")
    return "\n".join(rows) if len(rows) > 2 else ""
