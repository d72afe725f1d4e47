"""`python -m benchmarks [--quick] [--only NAME ...] [--json FILE]`: run the parts, print one table, write results and page.

Results and docs/benchmarks.md are written by complete runs only: not with --quick, not with --only. The exit code is 1 when a part
did not finish; a missed target is a fact and no failure.
"""

import argparse
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
from benchmarks.inprocess import in_process_loop
from benchmarks.machine import machine_facts, model_facts, versions
from benchmarks.setting import ROOT, Setting, find_llama_server
from benchmarks.text import Corpus
from examples.smollm2 import smollm2_path

PARTS = {
    "overhead": "What a decoded token and an empty call cost on top of their floors.",
    "warmth": "Time to first token of a 2 048-token prompt that has been seen before.",
    "throughput": "Tokens per second of many streams of one model together.",
    "agents": "Time to first token of 4 agents on one warmed 1 024-token prefix, 64 own tokens each.",
    "gaps": "What running streams notice of a long prompt next to them.",
    "ties": "How often company changes a greedy answer.",
    "stalls": "What a running stream notices of cache work next to it.",
    "speculation": "Prompt-lookup speculation: gain and loss.",
    "cache": "Copying, looking up and storing KV state.",
    "recovery": "From a SIGKILL to the next answer.",
    "scaling": "More models, more clients, longer prompts.",
    "idle": "Memory, processor time, start-up and size of a host that does nothing.",
}


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition(":")[2].partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: rough figures in a few minutes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="another model than the small one of the tests")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that hosts and peers end
    names = options.only or list(PARTS)
    model = options.model or smollm2_path()
    run = _run(names, model, options.quick)
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
    parts = {name: PARTS[name] for name in names}
    with in_process_loop(model, n_ctx=512) as tokenizer:
        setting = Setting(model, llama_server, quick, Corpus(tokenizer.tokenize), _say)
        for name in names:
            _say(f"{name}: {PARTS[name]}", indent="")
            try:
                module = import_module(f"benchmarks.{name}")
                parts[name] = " ".join(f"{PARTS[name]} {module.run.__doc__}".split())
                figures += module.run(setting)
            except Exception as error:
                # One broken part must not cost the figures of the others; the exit code and the table tell.
                traceback.print_exc()
                failures[name] = f"{type(error).__name__}: {error}"
    return report.Run(
        date=date,
        duration_s=time.monotonic() - started,
        quick=quick,
        machine=machine_facts(),
        model=model_facts(model),
        versions=versions(llama_server),
        parts=parts,
        figures=figures,
        failures=failures,
        bounds=BOUNDS,
    )


def _say(text: str, indent: str = "    ") -> None:
    print(f"{datetime.now():%H:%M:%S} {indent}{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
