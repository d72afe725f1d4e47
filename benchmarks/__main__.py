"""`python -m benchmarks [--quick] [--only NAME ...] [--json FILE]`: run the parts, print one table, write results and page.

Results and docs/benchmarks.md are written by complete runs only: not with --quick, not with --only. The exit code is 1 when a part
did not finish; a missed target is a fact and no failure.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks import report
from benchmarks.bounds import BOUNDS
from benchmarks.figures import Figure
from benchmarks.inprocess import LoopFailed, in_process_loop
from benchmarks.machine import machine_facts, model_facts, versions
from benchmarks.parts import PARTS, minutes, seconds_left
from benchmarks.setting import ROOT, Setting, find_llama_server
from benchmarks.text import Corpus
from erllama_host import ErllamaError
from erllama_host.config import ModelConfig
from erllama_host.controller.specs import check_model_file
from examples.smollm2 import smollm2_path


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; ends the process with one sentence when it cannot be carried out."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(":")[2].partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: rough figures in a few minutes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--json", type=_writable_file, metavar="FILE", help="write the results there, too")
    parser.add_argument(
        "--model", type=_model_file, metavar="GGUF", help="another model than the small one of the tests"
    )
    return parser.parse_args(arguments)


def _model_file(name: str) -> Path:
    path = Path(name).absolute()
    try:
        check_model_file(ModelConfig(path=str(path)))
    except ErllamaError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    return path


def _writable_file(name: str) -> Path:
    """Found out before the run and not after it."""
    path = Path(name).absolute()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {name}")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that hosts and peers end
    names = [name for name in PARTS if name in (options.only or PARTS)]
    model = options.model or smollm2_path()
    try:
        run = _run(names, model, options.quick)
    except LoopFailed as error:
        sys.exit(f"the in-process loop does not run: {error}")
    print("\n" + report.terminal_table(run))
    for name, failure in run.failures.items():
        print(f"{name} did not finish: {failure}")
    if options.json is not None:
        report.write_json(run, options.json)
    if not options.only and not options.quick:
        print(f"written: {report.write_json(run).relative_to(ROOT)}, {report.PAGE.relative_to(ROOT)}")
        report.write_page(run)
    return 1 if run.failures else 0


def _run(names: Sequence[str], model: Path, quick: bool) -> report.Run:
    llama_server = find_llama_server()
    started, date = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    purposes: dict[str, str] = {}
    durations_s: dict[str, float] = {}
    with in_process_loop(model, n_ctx=512) as tokenizer:
        setting = Setting(model, llama_server, quick, Corpus(tokenizer.tokenize), _say)
        for number, name in enumerate(names):
            begun = time.monotonic()
            _announce(names, number, begun - started, quick)
            purposes[name] = PARTS[name].purpose
            try:
                module = import_module(f"benchmarks.{name}")
                purposes[name] += " " + " ".join(module.run.__doc__.split())
                figures += module.run(setting)
            except Exception as error:
                # One broken part must not cost the figures of the others; the exit code and the table tell.
                traceback.print_exc()
                failures[name] = f"{type(error).__name__}: {error}"
            durations_s[name] = round(time.monotonic() - begun, 1)
    return report.Run(
        date=date,
        duration_s=time.monotonic() - started,
        quick=quick,
        machine=machine_facts(),
        model=model_facts(model),
        versions=versions(llama_server),
        parts=purposes,
        durations_s=durations_s,
        figures=figures,
        failures=failures,
        bounds=BOUNDS,
    )


def _announce(names: Sequence[str], number: int, elapsed_s: float, quick: bool) -> None:
    left_s = seconds_left(names, number, elapsed_s, quick=quick)
    progress = f"{number + 1} of {len(names)}, {minutes(elapsed_s)} gone, about {minutes(left_s)} to go"
    _say(f"{names[number]} ({progress}): {PARTS[names[number]].purpose}", indent="")


def _say(text: str, indent: str = "    ") -> None:
    print(f"{datetime.now():%H:%M:%S} {indent}{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
