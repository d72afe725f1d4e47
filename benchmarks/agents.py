"""Four agents that share a long warmed prefix and start at once, each with a few tokens of its own."""

from collections.abc import Sequence

from benchmarks.arithmetic import mean, median
from benchmarks.figures import Figure, Target
from benchmarks.host import benchmark_host
from benchmarks.llama_server import LlamaServer, llama_server
from benchmarks.setting import Setting, think
from benchmarks.systems import System, burst

PART = "agents"
NUM_AGENTS = 4
PREFIX_TOKENS = 1024
OWN_TOKENS = 64
ANSWER_TOKENS = 16
N_CTX = 4096
N_CELLS = 16384
LATER_BURSTS = 2
FIRST_TARGET = Target(at_most=1 / 8)
LATER_TARGET = Target(at_most=0.6)


def run(setting: Setting) -> list[Figure]:
    """The prefix is asked once, then all four at once, then twice more with other tokens of their own; 16 tokens each.

    Each round has a prefix of its own and, for llama-server, a fresh process: its slots start empty, which is best for it.
    """
    firsts: dict[str, list[float]] = {"host": [], LlamaServer.name: []}
    laters: dict[str, list[float]] = {"host": [], LlamaServer.name: []}
    with benchmark_host() as host:
        model = host.load(setting.model, "tiny", n_ctx=N_CTX, n_cells=N_CELLS, n_seq_max=NUM_AGENTS)
        for number in range(setting.repeats(3)):
            setting.say(f"round {number + 1}")
            _round(setting, model, number, firsts["host"], laters["host"])
            if setting.llama_server is not None:
                with llama_server(setting.llama_server, setting.model, N_CELLS, NUM_AGENTS) as server:
                    _round(setting, server, number, firsts[server.name], laters[server.name])
    return [
        _figure("first burst, slowest of 4", firsts, FIRST_TARGET),
        _figure("later bursts, mean of 4", laters, LATER_TARGET),
    ]


def _round(setting: Setting, system: System, number: int, firsts: list[float], laters: list[float]) -> None:
    prefix = setting.corpus.prompt(500 + number, PREFIX_TOKENS)
    system.stream(prefix, 1)
    think()
    for turn in range(1 + LATER_BURSTS):
        timings, _wall_s = burst(system, _prompts(setting, prefix, turn), ANSWER_TOKENS)
        ttfts = [timing.ttft_ms for timing in timings]
        if turn == 0:
            firsts.append(max(ttfts))
        else:
            laters.append(mean(ttfts))
        think()


def _prompts(setting: Setting, prefix: list[int], turn: int) -> Sequence[list[int]]:
    return [prefix + setting.corpus.prompt(600 + turn * NUM_AGENTS + agent, OWN_TOKENS) for agent in range(NUM_AGENTS)]


def _figure(name: str, samples: dict[str, list[float]], target: Target) -> Figure:
    theirs = samples[LlamaServer.name]
    reference = median(theirs) if theirs else None
    return Figure(PART, name, median(samples["host"]), "ms", LlamaServer.name, reference, target, samples=samples)
