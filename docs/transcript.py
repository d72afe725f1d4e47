"""A first session, word for word: `python -m docs.transcript` types a page's commands at a real host and writes down what came.

A transcript is a console block below `<!-- transcript -->`. Commands run one after the other in a directory of their own that
has `SmolLM2.gguf`, on a terminal of 80 columns. A test compares a new session with the page: words must be the same, numbers
may differ, and so may whether a model is busy at the moment.
"""

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.smollm2 import smollm2_path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/guides/quickstart.md")
_BLOCK = re.compile(r"(<!-- transcript -->\n+```console\n)(.*?)(^```)", re.MULTILINE | re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLUMNS = 80
_COMMAND_TIMEOUT_S = 100


def commands(block: str) -> list[str]:
    """The command lines of a block."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def words(block: str) -> list[str]:
    """What must be the same in two sessions: lines without numbers, temporary directories, states of models, runs of blanks."""
    text = re.sub(r"/\S*/", "", block)
    text = re.sub(r"\d[\d.,]*( ?(%|ms|s|m|h|B|KiB|MiB|GiB|tok/s)(?=\W|$))?", "#", text)
    text = re.sub(r"\b(idle|prefilling|generating)\b", "working or not", text)
    text = re.sub(r"(?<=\s)-(?=\s|$)", "#", text)
    text = re.sub(r"#([ \t]+#)+", "#", text)  # "1m 02s" and "5s", cells of a table
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def record(block: str) -> str:
    """Run the commands of a block at a new, private host; the block with what came."""
    base = Path(tempfile.mkdtemp(prefix="et-"))
    (base / "SmolLM2.gguf").symlink_to(smollm2_path())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ERLLAMA_")},
        "ERLLAMA_HOME": str(base / "home"),
        "ERLLAMA_RUN": str(base / "run"),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": str(_COLUMNS),
        "TERM": "dumb",
    }
    parts = []
    try:
        for command in commands(block):
            parts.append(f"$ {command}\n{run(command, base, environment)}")
    finally:
        run("erllama down --now", base, environment)
        shutil.rmtree(base)
    return "".join(parts)


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Output of one command on a terminal; notes on stderr follow what came on stdout."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "erllama", command
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "erllama_host.cli", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    shown = _read(master)
    _, notes = process.communicate(timeout=_COMMAND_TIMEOUT_S)
    lines = (_COLOUR.sub("", shown) + notes.decode()).replace("\r\n", "\n").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _read(master: int) -> str:
    """Everything that is written to the terminal until its last writer closes it, which Linux reports as an error."""
    chunks = []
    try:
        while chunk := os.read(master, 65536):
            chunks.append(chunk)
    except OSError:
        pass
    finally:
        os.close(master)
    return b"".join(chunks).decode(errors="replace")


def blocks(page: Path) -> list[str]:
    """The transcripts of a page."""
    return [match[2] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def main() -> None:
    """Record every transcript anew."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(_BLOCK.sub(lambda match: match[1] + record(match[2]) + match[3], text), encoding="utf-8")


if __name__ == "__main__":
    main()
