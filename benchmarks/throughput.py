"""Many streams of one model: tokens per second of all together, against the in-process loop and llama-server."""

from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.arithmetic import interleaved, median
from benchmarks.figures import Figure, Target
from benchmarks.host import BenchmarkHost, benchmark_host
from benchmarks.inprocess import in_process_loop
from benchmarks.llama_server import LlamaServer, llama_server
from benchmarks.setting import Setting, think
from benchmarks.systems import System, aggregate_tokens_per_s

PART = "throughput"
STREAMS = (1, 4, 8, 16)
PROMPT_TOKENS = 32
NUM_TOKENS = 64
N_CTX_PER_STREAM = 1024
LOOP_TARGET = Target(at_least=0.98)
SERVER_TARGET = Target(at_least=1.0)


def run(setting: Setting) -> list[Figure]:
    """Prompts of 32 tokens that have been asked before, 64 tokens each, from the first request sent to the last token read.

    The loop decodes all of them in lock step, in one process, without anybody to tell; runs are interleaved.
    """
    figures = []
    with benchmark_host() as host:
        for num_streams in STREAMS:
            setting.say(f"{num_streams} streams")
            figures += _streams(setting, host, num_streams)
    return figures


def _streams(setting: Setting, host: BenchmarkHost, num_streams: int) -> list[Figure]:
    prompts = [setting.corpus.prompt(400 + index, PROMPT_TOKENS) for index in range(num_streams)]
    n_ctx = N_CTX_PER_STREAM * num_streams
    with ExitStack() as stack:
        loop = stack.enter_context(in_process_loop(setting.model, n_ctx, num_streams))
        model = host.load(setting.model, "tiny", n_ctx=N_CTX_PER_STREAM, n_cells=n_ctx, n_seq_max=num_streams)
        stack.callback(model.model.unload)
        runs: dict[str, Callable[[int], float]] = {
            "host": _rate_of(model, prompts),
            loop.name: lambda _number: loop.tokens_per_s(prompts, NUM_TOKENS),
        }
        if setting.llama_server is not None:
            server = stack.enter_context(llama_server(setting.llama_server, setting.model, n_ctx, num_streams))
            runs[LlamaServer.name] = _rate_of(server, prompts)
        samples = interleaved(runs, setting.repeats(5, 2))
    return _figures(num_streams, samples)


def _rate_of(system: System, prompts: list[list[int]]) -> Callable[[int], float]:
    """A run of `system`; the prompts have been asked once before."""
    aggregate_tokens_per_s(system, prompts, 1)

    def rate(_number: int) -> float:
        think()
        return aggregate_tokens_per_s(system, prompts, NUM_TOKENS)

    return rate


def _figures(num_streams: int, samples: dict[str, list[float]]) -> list[Figure]:
    ours = median(samples["host"])
    name = f"{num_streams} stream{'s' if num_streams > 1 else ''}"
    loop = median(samples["in-process loop"])
    server = median(samples[LlamaServer.name]) if LlamaServer.name in samples else None
    targeted = num_streams > 1
    return [
        Figure(
            PART, name, ours, "tokens/s", "in-process loop", loop, LOOP_TARGET if targeted else None, samples=samples
        ),
        Figure(PART, name, ours, "tokens/s", LlamaServer.name, server, SERVER_TARGET if targeted else None),
    ]
