"""`erllama logs`: the files that circus writes for each process, merged by time, followed across rotation.

Structured lines (observability.py) are shown as `time level process event fields`; anything else (llama.cpp, a last word before a
crash) as it is.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, TextIO

import typer

from erllama_host.cli.completion import complete_processes
from erllama_host.cli.connection import paths_of
from erllama_host.cli.options import FollowFlag, JsonFlag
from erllama_host.cli.output import check_reader
from erllama_host.errors import HostUnavailable, InvalidRequest

_POLL_S = 0.2
_TAIL_BYTES = 1 << 20
_LEVEL_STYLE = {"debug": "dim", "info": "green", "warning": "yellow", "error": "bold red"}
_KNOWN = ("at", "level", "process", "pid", "event")


def logs(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|controller|cache|circusd",
            help="Whose log; all when absent.",
            autocompletion=complete_processes,
            show_default=False,
        ),
    ] = None,
    follow: FollowFlag = False,
    num: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the latest lines to show.")] = 50,
    as_json: JsonFlag = False,
) -> None:
    """Show the logs of this machine's host, up or down.

    Examples:
        $ erllama logs controller -n 100
        $ erllama logs -f tiny
    """
    folder = paths_of(ctx).logs
    files = log_files(folder, name)
    if not files:
        raise _no_log(folder, name)
    with ExitStack() as stack:
        tails = [stack.enter_context(Tail(path)) for path in files]
        printer = Printer(sys.stdout, as_json)
        first = merged(tails)
        for line in first[-num:] if num else []:
            printer.show(line)
        while follow:
            new = merged(tails)
            for line in new:
                printer.show(line)
            known = {tail.path for tail in tails}
            if name is None:
                tails += [stack.enter_context(Tail(path)) for path in log_files(folder, None) if path not in known]
            if not new:
                check_reader()
                time.sleep(_POLL_S)


def log_files(folder: Path, name: str | None) -> list[Path]:
    """Current (not rotated) log files, of one process or of all."""
    if name is None:
        return sorted(folder.glob("*.log"))
    candidates = [folder / f"{name}.log", folder / f"model-{name}.log"]
    return [path for path in candidates if path.is_file()]


def _no_log(folder: Path, name: str | None) -> Exception:
    if name is None:
        return HostUnavailable(f"there are no logs in {folder}; no host has run there: start one with `erllama up`")
    known = ", ".join(sorted(path.stem.removeprefix("model-") for path in folder.glob("*.log"))) or "none"
    return InvalidRequest(f"there is no log of {name!r} in {folder}; there are: {known}", field="name")


@dataclass(frozen=True)
class Line:
    """One line of a log. `at` orders lines of different files; what has no time keeps that of the line before."""

    at: str
    source: str
    text: str
    fields: dict[str, Any] | None


@dataclass
class Tail:
    """Reads what a file has got since the last look, also after circus has rotated it away and begun anew."""

    path: Path
    _file: BinaryIO | None = None
    _inode: int = 0
    _at: str = ""
    _partial: bytes = b""
    """The beginning of a line; bytes, since it may end in the middle of a character."""

    def read(self) -> Iterator[Line]:
        """Complete lines that are new."""
        yield from self._rest()
        if self._rotated():
            self._open()
            yield from self._rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _rest(self) -> Iterator[Line]:
        if self._file is None:
            return
        *lines, self._partial = (self._partial + self._file.read()).split(b"\n")
        for line in lines:
            for part in line.rstrip(b"\r").split(b"\r"):
                yield self._parse(part.decode(errors="replace"))

    def _rotated(self) -> bool:
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        first = self._file is None
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return  # rotated again at this moment; the next look finds it
        if self._file is not None:
            self._file.close()
        status = os.fstat(file.fileno())
        self._file, self._inode, self._partial = file, status.st_ino, b""
        if first and status.st_size > _TAIL_BYTES:
            self._file.seek(status.st_size - _TAIL_BYTES)
            self._file.readline()

    def _parse(self, text: str) -> Line:
        fields = None
        if text.startswith("{"):
            try:
                fields = json.loads(text)
            except ValueError:
                fields = None
        if isinstance(fields, dict) and "at" in fields:
            self._at = str(fields["at"])
        else:
            fields = None
        return Line(self._at, self.path.stem.removeprefix("model-"), text, fields)


def merged(tails: list[Tail]) -> list[Line]:
    """New lines of all files in the order of their times; within a file the order stays."""
    return sorted((line for tail in tails for line in tail.read()), key=lambda line: line.at)


class Printer:
    """Lines on a terminal, with colour; as they are when piped; as objects with `--json`."""

    def __init__(self, stream: TextIO, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json
        self._pretty = stream.isatty() and not as_json

    def show(self, line: Line) -> None:
        """Print one line."""
        if self._as_json:
            body = (
                line.fields
                if line.fields is not None
                else {"at": line.at, "process": line.source, "event": "text", "text": line.text}
            )
            self._stream.write(json.dumps(body, ensure_ascii=False) + "\n")
            self._stream.flush()
        elif self._pretty:
            self._show_pretty(line)
        else:
            self._stream.write(line.text + "\n")
            self._stream.flush()

    def _show_pretty(self, line: Line) -> None:
        from rich.text import Text

        from erllama_host.cli.output import console
        from erllama_host.cli.screens import fields_text

        if line.fields is None:
            text = Text.assemble((f"{'':23} {line.source:<12} ", "dim"), line.text)
        else:
            level = str(line.fields.get("level", "info"))
            extras = {name: value for name, value in line.fields.items() if name not in _KNOWN}
            text = Text.assemble(
                (str(line.fields["at"])[11:23], "dim"),
                " ",
                (f"{level:<8}", _LEVEL_STYLE.get(level, "")),
                f"{line.source:<12} ",
                (str(line.fields.get("event", "")), "bold"),
                " ",
                (fields_text(extras), "dim"),
            )
        console(self._stream).print(text, soft_wrap=True)
