"""Kill the host's processes at random while streams run, and count what was lost: `python -m tests.soak --minutes 10 --streams 8`.

Every `--kill-every` seconds one victim of worker, controller and cache daemon (and circusd with `--circusd`) gets SIGKILL or
SIGSTOP; the next one only after the last has been replaced. Streams go on meanwhile. With the stub every answer must equal the
undisturbed one. With `--model FILE` a real model answers greedily; then every delivered token must be the argmax of a
teacher-forced run, or within MARGIN of it, since other batch shapes change the last bits in llama.cpp.

At the end: the table, exit status 1 if anything was lost, repeated, wrong, or left behind.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from erllama_host import Client
from erllama_host.errors import ErllamaError
from tests.support.hosts import Host, eventually, running_host

MARGIN = 1.0
"""Another batch shape moves a logit of SmolLM2 by up to 0.7 although nothing is wrong."""
PROMPTS = 12
MODEL = "soaked"
SETTINGS = "[host]\nheartbeat_timeout_s = 6.0\n"
LIMITS = {"max_restarts": 10_000, "within_s": 60.0}


@dataclass
class Tally:
    """What is counted; written by all threads under its lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    worst_gap_s: float = 0.0

    def add(self, name: str, by: int = 1) -> None:
        with self.lock:
            self.counts[name] += by

    def problem(self, name: str, text: str) -> None:
        with self.lock:
            self.counts[name] += 1
            self.problems.append(f"{name}: {text}")


@dataclass(frozen=True)
class Load:
    """What the streams ask for, and how an answer is judged."""

    prompts: list[str]
    max_tokens: int
    expected: dict[str, list[int]] = field(default_factory=dict)
    model_path: str | None = None
    answers: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def judge(self, prompt: str, prompt_ids: list[int], generated: list[int], tally: Tally) -> None:
        """Count what is wrong with an answer."""
        if self.model_path is not None:
            self.answers.append((prompt_ids, generated))
        elif generated != self.expected[prompt]:
            tally.problem("wrong", f"{prompt!r}: {generated[:8]}… instead of {self.expected[prompt][:8]}…")


def stream_forever(host: Host, load: Load, number: int, tally: Tally, ended: threading.Event) -> None:
    """One client: ask, read, judge, again."""
    chance = random.Random(number)
    with Client(host.endpoint) as client:
        model = client.model(MODEL)
        while not ended.is_set():
            prompt = chance.choice(load.prompts)
            tally.add("streams")
            try:
                one_stream(model, prompt, load, tally)
            except ErllamaError as error:
                tally.problem("lost", f"{type(error).__name__}: {error.message}")


def one_stream(model, prompt: str, load: Load, tally: Tally) -> None:
    ids: list[int] = []
    last = time.monotonic()
    with model.infer(prompt, max_tokens=load.max_tokens, ignore_eos=True) as stream:
        for piece in stream:
            now = time.monotonic()
            tally.worst_gap_s, last = max(tally.worst_gap_s, now - last), now
            ids += piece.token_ids
    done = stream.result()
    tally.add("tokens", len(ids))
    tally.add("resumes", done.resumes)
    if len(ids) != load.max_tokens or ids != list(done.generated):
        how = f"{len(ids)} tokens of {load.max_tokens}: {done.finish_reason} {done.cancel_reason or ''}, {done.resumes} resumes"
        tally.problem("repeated" if len(ids) > load.max_tokens else "short", how)
        return
    load.judge(prompt, done.tokens[: len(done.tokens) - len(ids)], ids, tally)


def strike(host: Host, victims: list[str], chance: random.Random, tally: Tally) -> None:
    """Kill or stop one process and wait until another serves in its place."""
    victim = chance.choice(victims)
    # A stopped circusd is beyond what the host promises to notice by itself: its parent sees only its end.
    how = signal.SIGKILL if victim == "circusd" else chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    role = f"model:{MODEL}" if victim == "worker" else victim
    pid = eventually(lambda: host.pid_of(role), f"{role} runs")
    struck_at = time.monotonic()
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return  # it was being replaced just then
    tally.add(f"{how.name} {victim}")
    eventually(lambda: host.pid_of(role) not in (0, pid) and serves(host, victim), f"another {role} serves")
    with tally.lock:
        tally.recovery_s.setdefault(f"{how.name} {victim}", []).append(time.monotonic() - struck_at)


def serves(host: Host, victim: str) -> bool:
    with host.client() as client:
        if victim == "cache":
            return client.call("counters", timeout_s=5)["counters"]["cache_available"] == 1
        return client.call("status", model=MODEL, timeout_s=5)["status"] in ("idle", "prefilling", "generating")


def run(arguments: argparse.Namespace) -> Tally:
    """The whole soak."""
    tally, ended, chance = Tally(), threading.Event(), random.Random(arguments.seed)
    victims = ["worker", "controller", "cache", *(["circusd"] if arguments.circusd else [])]
    with running_host(SETTINGS) as host:
        load = prepare(host, arguments)
        threads = [
            threading.Thread(target=stream_forever, args=(host, load, number, tally, ended))
            for number in range(arguments.streams)
        ]
        for thread in threads:
            thread.start()
        give_up_at = time.monotonic() + 60 * arguments.minutes
        try:
            while time.monotonic() < give_up_at:
                time.sleep(min(arguments.kill_every, max(0.0, give_up_at - time.monotonic())))
                strike(host, victims, chance, tally)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        look_for_leaks(host, tally)
        if load.model_path is not None:
            teacher_force(load, tally)
    return tally


def prepare(host: Host, arguments: argparse.Namespace) -> Load:
    """Load the model, and for the stub learn the undisturbed answers."""
    prompts = [
        f"Story {number}. " + "Once upon a time there was a fox who " * (3 + number) for number in range(PROMPTS)
    ]
    with Client(host.endpoint) as client:
        if arguments.model:
            path = str(Path(arguments.model).resolve())
            client.load_model(path, model_id=MODEL, n_ctx=1024, n_seq_max=4, **LIMITS)
            return Load(prompts, arguments.tokens, model_path=path)
        model = client.load_model(model_id=MODEL, backend="stub", stub={"token_ms": 10.0}, **LIMITS)
        expected = {
            prompt: list(model.complete(prompt, max_tokens=arguments.tokens, ignore_eos=True).generated)
            for prompt in prompts
        }
        return Load(prompts, arguments.tokens, expected)


def look_for_leaks(host: Host, tally: Tally) -> None:
    """More processes than there should be, files or bytes that no index knows, descriptors piling up in what was not killed."""
    with host.client() as client:
        wanted = {each["pid"] for each in client.call("host_status")["processes"]}
    top = psutil.Process(host.state().pid)
    eventually(
        lambda: {each.pid for each in top.children(recursive=True)} == wanted, "exactly the processes there should be"
    )
    with Client(host.endpoint) as client:
        eventually(
            lambda: unaccounted(client.cache_stats()["tiers"]["ram"]) == (0, 0), "every cached byte is accounted for"
        )
    tally.add("descriptors of circusd", psutil.Process(host.state().circusd_pid).num_fds())


def unaccounted(tier: dict[str, Any]) -> tuple[int, int]:
    """Files, and bytes of them, in the tier's directory beyond those that the cache daemon counts."""
    files = [path for path in Path(tier["path"]).rglob("*") if path.is_file() and path.name != "lock"]
    sizes = [path.stat().st_blocks * 512 for path in files]
    return len(sizes) - tier["segments"] - tier["recyclable_files"], sum(sizes) - tier["used_bytes"]


def teacher_force(load: Load, tally: Tally) -> None:
    """Judge the answers of a real model; the same answer to the same prompt only once."""
    from tests.support.greedy import worst_margins

    different = {(tuple(prompt), tuple(answer)) for prompt, answer in load.answers}
    for margin in worst_margins(Path(load.model_path), [(list(prompt), list(answer)) for prompt, answer in different]):
        tally.add("different answers judged")
        if margin > MARGIN:
            tally.problem("wrong", f"a token is {margin:.3f} below the best one")


def table(tally: Tally) -> str:
    """The figures, for people and for the docs."""
    rows = [
        (name, str(tally.counts[name]))
        for name in ("streams", "tokens", "resumes", "lost", "repeated", "short", "wrong")
    ]
    rows += [(name, str(count)) for name, count in sorted(tally.counts.items()) if name not in dict(rows)]
    for name, times in sorted(tally.recovery_s.items()):
        rows.append((f"recovery after {name}", f"p50 {statistics.median(times):.2f} s, max {max(times):.2f} s"))
    rows.append(("longest silence within a stream", f"{tally.worst_gap_s:.2f} s"))
    return "\n".join(["| what | how much |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--model", help="a GGUF; the stub without it")
    parser.add_argument("--circusd", action="store_true", help="kill circusd as well")
    parser.add_argument("--seed", type=int, default=1)
    tally = run(parser.parse_args())
    print(table(tally))
    print("\n".join(tally.problems[:20]))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
