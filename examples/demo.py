"""The main job in one minute: a prompt is computed once, and restored ever after. `make demo` runs this.

Starts a private host, loads SmolLM2-135M-Instruct, and asks the same long question four times: cold, warm, warm after the
model's process was killed with SIGKILL, and warm after the whole host was stopped and started. Ends with a table; leaves nothing
behind.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from erllama_host import Client, ErllamaError
from erllama_host.client import Completion, Model
from erllama_host.config import Config, Paths
from erllama_host.supervisor import private_paths, start_host, stop_host
from examples.smollm2 import smollm2_path

PROMPT_TOKENS = 1536
MAX_TOKENS = 24
TARGET_RATIO = 20.0
_SENTENCE = (
    "Entry {n}: the keeper of light {n} wrote that the wind came from the {wind} and that {count} ships passed. "
)
_WINDS = ("north", "south-west", "east", "north-east", "west", "south")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    completion: Completion
    ttft_ms: float


def long_prompt(model: Model) -> list[int]:
    """A prompt of PROMPT_TOKENS tokens, the log book of a lighthouse."""
    text = "".join(_SENTENCE.format(n=n, wind=_WINDS[n % 6], count=n * 7 % 23) for n in range(200))
    return model.tokenize(text)[:PROMPT_TOKENS]


def ask(model: Model, prompt: list[int], name: str) -> Row:
    """Complete `prompt` greedily; the time to first token is what the client saw."""
    completion = model.complete(prompt, max_tokens=MAX_TOKENS)
    return Row(name, completion, completion.stats.client_ttft_ms)


def await_serving(model: Model, not_pid: int = 0, timeout_s: float = 60.0) -> int:
    """Wait until a worker of `model` (another than `not_pid`) is ready. Returns its pid."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            info = model.info()
        except ErllamaError as error:
            if not error.retryable:
                raise
        else:
            if info.status == "idle" and info.pid not in (0, not_pid):
                return info.pid
        time.sleep(0.02)
    raise SystemExit(f"the worker did not serve within {timeout_s:.0f} s")


def kill_worker(model: Model, console: Console) -> None:
    """SIGKILL the model's process and wait until another one serves."""
    before = model.info().pid
    killed_at = time.monotonic()
    os.kill(before, signal.SIGKILL)
    after = await_serving(model, not_pid=before)
    console.print(
        f"  worker {before} killed with SIGKILL; worker {after} serves {time.monotonic() - killed_at:.2f} s later"
    )


def load(client: Client, path: Path, console: Console) -> Model:
    """Load the model with a progress bar."""
    columns = (TextColumn("  loading"), BarColumn(), TextColumn("{task.percentage:>3.0f} % {task.fields[phase]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("load", total=1.0, phase="")
        return client.load_model(
            str(path),
            model_id="tiny",
            n_ctx=4096,
            tier="disk",
            on_progress=lambda step: bar.update(task, completed=step.fraction, phase=step.phase),
        )


def run(paths: Paths, console: Console) -> list[Row]:
    """The four questions, on a host of our own."""
    path = smollm2_path()
    console.print(f"Model: {path.name}, {path.stat().st_size / 1e6:.0f} MB. Prompt: {PROMPT_TOKENS} tokens.")
    host = start_host(paths, Config(), detach=False)
    try:
        with Client(paths.endpoint) as client:
            model = load(client, path, console)
            prompt = long_prompt(model)
            rows = [ask(model, prompt, "cold"), ask(model, prompt, "warm")]
            kill_worker(model, console)
            rows.append(ask(model, prompt, "warm, after kill -9"))
        console.print("  stopping the whole host and starting it again …")
        stop_host(paths)
        host.wait()
        host = start_host(paths, Config(), detach=False)
        with Client(paths.endpoint) as client:
            model = client.model("tiny")
            await_serving(model)
            rows.append(ask(model, prompt, "warm, after a restart"))
            return rows
    finally:
        stop_host(paths)
        host.wait()


def show(rows: list[Row], console: Console) -> None:
    """Print the table."""
    table = Table(title="Time to first token")
    for heading in ("request", "ttft ms", "times faster", "hit", "restored", "computed"):
        table.add_column(heading, justify="left" if heading in ("request", "hit") else "right")
    for row in rows:
        cache = row.completion.cache
        table.add_row(
            row.name,
            f"{row.ttft_ms:.1f}",
            f"{rows[0].ttft_ms / row.ttft_ms:.0f}",
            cache.kind,
            str(cache.read_tokens),
            str(PROMPT_TOKENS - cache.read_tokens),
        )
    console.print(table)
    console.print(f"The answer, each time: {rows[-1].completion.text!r}")


def main() -> int:
    """Run the demo; the exit code is 0 when every warm request was at least TARGET_RATIO times faster than the cold one."""
    console = Console(highlight=False)
    with private_paths() as paths:
        try:
            rows = run(paths, console)
        except ErllamaError as error:
            console.print(f"[red]{error.code}[/red]: {error.message}")
            return 1
    show(rows, console)
    slow = [row.name for row in rows[1:] if rows[0].ttft_ms / row.ttft_ms < TARGET_RATIO]
    if slow:
        console.print(f"[red]less than {TARGET_RATIO:.0f} times faster:[/red] {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
