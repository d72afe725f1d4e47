"""What the host costs where nothing is cached: a decoded token, and a call that does nothing."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.arithmetic import interleaved, median, percentile
from benchmarks.echo import bare_round_trip
from benchmarks.figures import Figure, Target
from benchmarks.host import STUB_PROMPT, BenchmarkHost, HostModel, benchmark_host
from benchmarks.inprocess import InProcessLoop, in_process_loop
from benchmarks.python_server import PythonServer, is_available, python_server
from benchmarks.setting import Setting
from benchmarks.text import prose

PART = "overhead"
N_CTX = 2048
PROMPT_TOKENS = 32
NUM_TOKENS = 256
NUM_TOKENS_ONE_THREAD = 128
STUB_TOKENS = 1024
CALLS_PER_ROUND = 200
END_TOKENS = (0, 2)  # of SmolLM2
DECODE_TARGET = Target(at_least=0.98)


def run(setting: Setting) -> list[Figure]:
    """One stream, one slot, a fresh prompt every round, from the first token to the last; the loop's clock covers as many steps.

    Round trips: calls that do nothing, against a bare ROUTER that echoes 200 bytes.
    """
    with benchmark_host() as host, in_process_loop(setting.model, N_CTX) as loop:
        model = host.load(setting.model, "tiny", n_ctx=N_CTX, n_seq_max=1)
        stub = host.load_stub("stub", n_ctx=N_CTX, n_seq_max=1)
        return [
            *_decode(setting, model, loop),
            _decode_with_a_core_to_spare(setting, host),
            _own_cost(setting, stub),
            *_round_trips(setting, host, model),
        ]


def _decode(setting: Setting, model: HostModel, loop: InProcessLoop) -> list[Figure]:
    """One stream. Every round has a prompt of its own, so that nothing of it is cached or live."""
    llama_decode_ms: list[float] = []

    def host_rate(number: int) -> float:
        prompt = setting.corpus.prompt(100 + number, PROMPT_TOKENS)
        return model.stream(prompt, NUM_TOKENS).decode_tokens_per_s

    def loop_rate(number: int) -> float:
        answer = loop.generate([setting.corpus.prompt(100 + number, PROMPT_TOKENS)], NUM_TOKENS)
        llama_decode_ms.append(answer["decode_s"] / answer["num_tokens"] * 1e3)
        return answer["num_tokens"] / answer["wall_s"]

    runs = {"host": host_rate, loop.name: loop_rate}
    with ExitStack() as stack:
        if is_available():
            peer = stack.enter_context(python_server(setting.model, N_CTX))
            runs[peer.name] = lambda number: _python_rate(peer, number)
        samples = interleaved(runs, setting.repeats(5, 3))
    ours, theirs = median(samples["host"]), median(samples[loop.name])
    peers = median(samples[PythonServer.name]) if PythonServer.name in samples else None
    share_us = 1e6 / ours - median(llama_decode_ms) * 1e3
    loop_share_us = 1e6 / theirs - median(llama_decode_ms) * 1e3
    return [
        Figure(PART, "single-stream decode", ours, "tokens/s", loop.name, theirs, DECODE_TARGET, samples=samples),
        Figure(PART, "single-stream decode", ours, "tokens/s", PythonServer.name, peers),
        Figure(PART, "a step outside llama_decode, 1 stream", share_us, "µs", loop.name, loop_share_us),
    ]


def _decode_with_a_core_to_spare(setting: Setting, host: BenchmarkHost) -> Figure:
    """The same with one thread each: what the host costs where its sockets need not take a core from llama.cpp."""
    model = host.load(setting.model, "one", n_ctx=N_CTX, n_seq_max=1, n_threads=1, n_threads_batch=1)
    with in_process_loop(setting.model, N_CTX, threads=1) as loop:
        samples = interleaved(
            {
                "host": lambda number: (
                    model.stream(
                        setting.corpus.prompt(200 + number, PROMPT_TOKENS), NUM_TOKENS_ONE_THREAD
                    ).decode_tokens_per_s
                ),
                loop.name: lambda number: loop.tokens_per_s(
                    [setting.corpus.prompt(200 + number, PROMPT_TOKENS)], NUM_TOKENS_ONE_THREAD
                ),
            },
            setting.repeats(3, 1),
        )
    model.model.unload()
    name = "single-stream decode, one thread of llama.cpp"
    ours, theirs = median(samples["host"]), median(samples[loop.name])
    return Figure(PART, name, ours, "tokens/s", loop.name, theirs, samples=samples)


def _python_rate(peer: PythonServer, number: int) -> float:
    """It takes text only; the length of a prompt hardly matters to the rate after it."""
    return peer.stream_text(prose(100 + number, PROMPT_TOKENS), NUM_TOKENS, END_TOKENS).decode_tokens_per_s


def _own_cost(setting: Setting, stub: HostModel) -> Figure:
    """With a backend that computes nothing a token costs what scheduler, sockets and client cost; less would be nothing at all."""
    rates = [stub.stream(STUB_PROMPT, STUB_TOKENS).decode_tokens_per_s for _ in range(setting.repeats(5, 2))]
    return Figure(PART, "a token through the whole host with a stub, 1 stream", 1e6 / median(rates), "µs")


def _round_trips(setting: Setting, host: BenchmarkHost, model: HostModel) -> list[Figure]:
    with bare_round_trip() as bare:
        calls: dict[str, Callable[[], float]] = {
            "call to the controller": lambda: _seconds(host.client.hello),
            "call to a model": lambda: _seconds(model.model.status),
            "bare ZeroMQ": bare,
        }
        samples: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(setting.repeats(5, 2)):
            for name, call in calls.items():
                samples[name] += [call() * 1e6 for _ in range(CALLS_PER_ROUND)]
    floor = median(samples["bare ZeroMQ"])
    return [
        Figure(PART, f"{name}, round trip", median(samples[name]), "µs", "bare ZeroMQ", floor, note=_p99(samples[name]))
        for name in calls
        if name != "bare ZeroMQ"
    ]


def _p99(samples_us: list[float]) -> str:
    return f"p99 {percentile(samples_us, 99):.0f}"


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
