"""Time to first token of a 2 048-token prompt: cold, repeated, after another conversation, after a kill, after a restart."""

import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar

from benchmarks.arithmetic import median
from benchmarks.figures import Figure, Target
from benchmarks.host import BenchmarkHost, benchmark_host
from benchmarks.llama_server import LlamaServer, llama_server
from benchmarks.setting import Setting, think
from benchmarks.systems import System

PART = "warmth"
MODEL_ID = "tiny"
PROMPT_TOKENS = 2048
N_CTX = 4096  # two such prompts and not a third: one slot's worth, for the host as for llama-server
COLD = "cold"
REPEAT = "exact repeat"
SWAP = "after another conversation took over"
KILL = "after kill -9 of the worker"
RESTART = "after a full restart"
TARGETS = {
    REPEAT: Target(at_most=0.5),
    SWAP: Target(at_most=0.6),
    RESTART: Target(at_most=1 / 150),
}

_System = TypeVar("_System", bound=System)


def run(setting: Setting) -> list[Figure]:
    """Rounds of the host and of llama-server take turns. Each round computes a new prompt, repeats it, takes turns between it and
    the one of the round before, and asks for it once more after the restart.

    Both have one slot of 4 096 cells, and 0.2 s between requests; host, server and model are up when the clock starts. In brackets:
    how the host's cache was hit.
    """
    ours, theirs = _Asked(), _Asked()
    rounds = setting.repeats(3)
    prompts = [setting.corpus.prompt(300 + number, PROMPT_TOKENS) for number in range(rounds + 1)]
    with benchmark_host() as host, ExitStack() as peer:
        host.load(setting.model, MODEL_ID, n_ctx=N_CTX, n_cells=N_CTX, n_seq_max=1, tier="disk")
        ours.ask(COLD, _warmed_up(host.model(MODEL_ID)), prompts[0])
        server = None
        if setting.llama_server is not None:
            server = _fresh_server(setting, peer)
            theirs.ask(COLD, server, prompts[0])
        for number, (older, newer) in enumerate(itertools.pairwise(prompts)):
            setting.say(f"round {number + 1} of {rounds}")
            _host_round(host, older, newer, ours)
            if server is not None:
                _conversations(server, older, newer, theirs)
                server = _fresh_server(setting, peer)
                theirs.ask(RESTART, server, newer)
    return _figures(ours, theirs)


class _Asked:
    """Times to first token by what was asked, and how the cache was hit the last time.

    Attributes:
        ttft_ms: samples by name. kinds: by name; empty strings for a peer.
    """

    def __init__(self) -> None:
        self.ttft_ms: dict[str, list[float]] = defaultdict(list)
        self.kinds: dict[str, str] = {}

    def ask(self, name: str, system: System, prompt: Sequence[int]) -> None:
        """One request and one token."""
        timing = system.stream(prompt, 1)
        self.ttft_ms[name].append(timing.ttft_ms)
        self.kinds[name] = timing.kind
        think()


def _conversations(system: System, older: Sequence[int], newer: Sequence[int], asked: _Asked) -> None:
    """A new prompt, repeats of it, and two conversations that take turns in one slot."""
    asked.ask(COLD, system, newer)
    for _ in range(3):
        asked.ask(REPEAT, system, newer)
    for _ in range(3):
        asked.ask(SWAP, system, older)
        asked.ask(SWAP, system, newer)


def _host_round(host: BenchmarkHost, older: Sequence[int], newer: Sequence[int], asked: _Asked) -> None:
    _conversations(host.model(MODEL_ID), older, newer, asked)
    _kill_worker(host)
    asked.ask(KILL, _warmed_up(host.model(MODEL_ID)), newer)
    host.restart()
    asked.ask(RESTART, _warmed_up(host.model(MODEL_ID)), newer)


def _kill_worker(host: BenchmarkHost) -> None:
    """SIGKILL, then wait until another process serves."""
    role = f"model:{MODEL_ID}"
    before = host.process(role)
    before.process.kill()
    deadline = time.monotonic() + 60
    while host.process(role).process.pid == before.process.pid:
        if time.monotonic() > deadline:
            raise TimeoutError("the worker did not come back within 60 s")
        time.sleep(0.02)


def _fresh_server(setting: Setting, peer: ExitStack) -> LlamaServer:
    """End the server that `peer` holds, if any, and start another, which ends with `peer`."""
    assert setting.llama_server is not None
    peer.close()
    return _warmed_up(peer.enter_context(llama_server(setting.llama_server, setting.model, N_CTX)))


def _warmed_up(system: _System) -> _System:
    """The first decode of a process pays for page faults, and for its load (recovery.py times that): neither side is charged."""
    system.stream([1, 2, 3], 1)
    think()
    return system


def _figures(ours: _Asked, theirs: _Asked) -> list[Figure]:
    cold = median(ours.ttft_ms[COLD])
    figures = []
    for name in (COLD, REPEAT, SWAP, KILL, RESTART):
        value = median(ours.ttft_ms[name])
        there = theirs.ttft_ms[name]
        reference = median(there) if there else None
        samples = {"host": ours.ttft_ms[name], LlamaServer.name: there}
        peer = "" if name == KILL else LlamaServer.name
        kind = "" if name == COLD else ours.kinds[name]  # a cold prompt may share its first few tokens with a live one
        figures.append(Figure(PART, name, value, "ms", peer, reference, TARGETS.get(name), kind, samples=samples))
    figures += [
        Figure(PART, f"{name}, against cold", median(ours.ttft_ms[name]), "ms", "host, cold", cold)
        for name in (REPEAT, SWAP, KILL, RESTART)
    ]
    return figures
