"""Time to first token of a 2 048-token prompt: cold, repeated, after another conversation, after a kill, after a restart."""

import time
from collections import defaultdict
from collections.abc import Sequence

from benchmarks.arithmetic import median
from benchmarks.figures import Figure, Target
from benchmarks.host import BenchmarkHost, HostModel, benchmark_host
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

Samples = dict[str, list[float]]


def run(setting: Setting) -> list[Figure]:
    """Rounds of the host and of llama-server take turns; each round has prompts of its own.

    Both have one slot of 4 096 cells, and 0.2 s between requests; host, server and model are up when the clock starts. In brackets:
    how the host's cache was hit.
    """
    ours: Samples = defaultdict(list)
    theirs: Samples = defaultdict(list)
    kinds: dict[str, str] = {}
    with benchmark_host() as host:
        host.load(setting.model, MODEL_ID, n_ctx=N_CTX, n_cells=N_CTX, n_seq_max=1, tier="disk")
        for number in range(setting.repeats(3)):
            setting.say(f"round {number + 1}")
            prompts = [setting.corpus.prompt(300 + 2 * number + which, PROMPT_TOKENS) for which in (0, 1)]
            _host_round(host, prompts, ours, kinds)
            if setting.llama_server is not None:
                _server_round(setting, prompts, theirs)
    return _figures(ours, theirs, kinds)


def _conversations(system: System, prompts: Sequence[Sequence[int]], samples: Samples, kinds: dict[str, str]) -> None:
    """Cold, repeats, and two conversations that take turns in one slot."""
    first, second = prompts

    def ask(name: str, prompt: Sequence[int]) -> None:
        timing = system.stream(prompt, 1)
        samples[name].append(timing.ttft_ms)
        kinds[name] = timing.kind
        think()

    ask(COLD, first)
    for _ in range(3):
        ask(REPEAT, first)
    ask(COLD, second)
    for _ in range(3):
        ask(SWAP, first)
        ask(SWAP, second)


def _host_round(host: BenchmarkHost, prompts: Sequence[Sequence[int]], samples: Samples, kinds: dict[str, str]) -> None:
    _conversations(host.model(MODEL_ID), prompts, samples, kinds)
    _kill_worker(host)
    _ask_after(KILL, host.model(MODEL_ID), prompts[0], samples, kinds)
    host.restart()
    _ask_after(RESTART, host.model(MODEL_ID), prompts[0], samples, kinds)


def _ask_after(name: str, model: HostModel, prompt: Sequence[int], samples: Samples, kinds: dict[str, str]) -> None:
    """Host and model are up: the clock is about the prompt, not about the load (recovery.py times that)."""
    model.stream([1, 2, 3], 1)
    think()
    timing = model.stream(prompt, 1)
    samples[name].append(timing.ttft_ms)
    kinds[name] = timing.kind


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


def _server_round(setting: Setting, prompts: Sequence[Sequence[int]], samples: Samples) -> None:
    assert setting.llama_server is not None
    kinds: dict[str, str] = {}
    with llama_server(setting.llama_server, setting.model, N_CTX) as server:
        _warm_up(server)
        _conversations(server, prompts, samples, kinds)
    with llama_server(setting.llama_server, setting.model, N_CTX) as server:
        _warm_up(server)
        samples[RESTART].append(server.stream(prompts[0], 1).ttft_ms)


def _warm_up(server: LlamaServer) -> None:
    """The first decode of a process pays for page faults; neither side is charged for it."""
    server.stream([1, 2, 3], 1)
    think()


def _figures(ours: Samples, theirs: Samples, kinds: dict[str, str]) -> list[Figure]:
    cold = median(ours[COLD])
    figures = []
    for name in (COLD, REPEAT, SWAP, KILL, RESTART):
        reference = median(theirs[name]) if theirs.get(name) else None
        samples = {"host": ours[name], LlamaServer.name: theirs.get(name, [])}
        value = median(ours[name])
        peer = "" if name == KILL else LlamaServer.name
        kind = "" if name == COLD else kinds[name]  # a cold prompt may share its first few tokens with a live one
        figures.append(Figure(PART, name, value, "ms", peer, reference, TARGETS.get(name), kind, samples=samples))
    figures += [
        Figure(PART, f"{name}, against cold", median(ours[name]), "ms", "host, cold", cold)
        for name in (REPEAT, SWAP, KILL, RESTART)
    ]
    return figures
