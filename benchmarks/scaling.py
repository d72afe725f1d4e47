"""How the host behaves as things grow: models, clients, prompts. (Segments: cache.py.)"""

import asyncio
import time
from collections.abc import Callable, Sequence

from benchmarks.arithmetic import median, percentile
from benchmarks.figures import Figure
from benchmarks.host import STUB_PROMPT, BenchmarkHost, HostModel, benchmark_host
from benchmarks.setting import Setting, think
from erllama_host import AsyncClient

PART = "scaling"
NUM_MODELS = (1, 4, 8)
NUM_CLIENTS = (1, 10, 100, 500)
PROMPT_LENGTHS = (512, 2048, 8192)
PROMPT_TOKENS = 32
NUM_TOKENS = 96
NUM_STUB_TOKENS = 2048  # a stub's tokens come too fast for fewer to be timed
REQUESTS = 500
REQUEST_TOKENS = 8
CALLS = 100

Load = Callable[[BenchmarkHost, str], HostModel]


def run(setting: Setting) -> list[Figure]:
    """Models: one is asked while the others are loaded and idle. Clients: 500 requests to a stub, shared out among connections.

    Prompts: warm means after other prompts took the slot.
    """
    return [*_models(setting), *_clients(setting), *_prompts(setting)]


def _models(setting: Setting) -> list[Figure]:
    """One model asked while the others are loaded and idle: what does their presence cost it?"""

    def real(host: BenchmarkHost, model_id: str) -> HostModel:
        return host.load(setting.model, model_id, n_ctx=1024, n_seq_max=1)

    def stub(host: BenchmarkHost, model_id: str) -> HostModel:
        return host.load_stub(model_id, n_ctx=4096, n_seq_max=1)

    prompt = setting.corpus.prompt(1000, PROMPT_TOKENS)
    return [
        *_grow(setting, "stub", stub, STUB_PROMPT, NUM_STUB_TOKENS),
        *_grow(setting, "real", real, prompt, NUM_TOKENS),
    ]


def _grow(setting: Setting, kind: str, load: Load, prompt: Sequence[int], num_tokens: int) -> list[Figure]:
    figures: list[Figure] = []
    alone: tuple[float, float] | None = None
    with benchmark_host() as host:
        for count in range(1, NUM_MODELS[-1] + 1):
            started = time.perf_counter()
            newest = load(host, f"{kind}{count}")
            load_ms = (time.perf_counter() - started) * 1e3
            if count not in NUM_MODELS:
                continue
            setting.say(f"{count} {kind} models")
            rate, call_us = _pace(setting, newest, prompt, num_tokens)
            alone = alone or (rate, call_us)
            name = f"{count} {kind} model{'s' if count > 1 else ''}"
            figures += [
                Figure(
                    PART,
                    f"{name}: decode of one",
                    rate,
                    "tokens/s",
                    "1 model",
                    alone[0],
                    note=f"loaded in {load_ms:.0f} ms",
                ),
                Figure(PART, f"{name}: call to one", call_us, "µs", "1 model", alone[1]),
            ]
    return figures


def _pace(setting: Setting, model: HostModel, prompt: Sequence[int], num_tokens: int) -> tuple[float, float]:
    """Decode rate of one stream and median round trip of a call (µs)."""
    rate = median([model.stream(prompt, num_tokens).decode_tokens_per_s for _ in range(setting.repeats(3))])
    calls = []
    for _ in range(CALLS):
        started = time.perf_counter()
        model.model.status()
        calls.append((time.perf_counter() - started) * 1e6)
    return rate, median(calls)


def _clients(setting: Setting) -> list[Figure]:
    """The same number of short requests, by 1 to 500 clients with a connection each, on a stub."""
    figures = []
    one: float | None = None
    with benchmark_host() as host:
        host.load_stub("stub", n_ctx=4096, n_seq_max=64, max_queue=2 * REQUESTS)
        for num_clients in NUM_CLIENTS:
            setting.say(f"{num_clients} clients")
            latencies, wall_s = asyncio.run(_ask_all(host.paths.endpoint, num_clients))
            rate = len(latencies) / wall_s
            one = one or rate
            note = f"p50 {median(latencies):.1f} ms, p99 {percentile(latencies, 99):.1f} ms"
            name = f"{num_clients} client{'s' if num_clients > 1 else ''}: {REQUEST_TOKENS}-token requests"
            figures.append(Figure(PART, name, rate, "requests/s", "1 client", one, note=note))
    return figures


async def _ask_all(endpoint: str, num_clients: int) -> tuple[list[float], float]:
    """Latencies (ms) of REQUESTS requests shared out among the clients, and the seconds they took together."""
    latencies: list[float] = []

    async def ask(client: AsyncClient, count: int) -> None:
        model = client.model("stub")
        for _ in range(count):
            started = time.perf_counter()
            await model.complete(STUB_PROMPT, max_tokens=REQUEST_TOKENS, ignore_eos=True)
            latencies.append((time.perf_counter() - started) * 1e3)

    clients = [AsyncClient(endpoint) for _ in range(num_clients)]
    try:
        await asyncio.gather(*(client.hello() for client in clients))
        started = time.perf_counter()
        await asyncio.gather(*(ask(client, REQUESTS // num_clients) for client in clients))
        return latencies, time.perf_counter() - started
    finally:
        for client in clients:
            await client.aclose()


def _prompts(setting: Setting) -> list[Figure]:
    """Cold and, after as many other tokens have passed through, warm from the cache."""
    figures = []
    lengths = PROMPT_LENGTHS[: setting.repeats(len(PROMPT_LENGTHS), 2)]
    with benchmark_host() as host:
        longest = lengths[-1] + 16
        model = host.load(setting.model, "tiny", n_ctx=longest, n_cells=longest, n_seq_max=1)
        for length in lengths:
            setting.say(f"prompt of {length} tokens")
            prompt = setting.corpus.prompt(1100 + length, length)
            cold_ms = model.stream(prompt, 1).ttft_ms
            warm_ms = []
            for number in range(3):
                think()
                model.stream(setting.corpus.prompt(1200 + number, 256), 1)
                think()
                warm_ms.append(model.stream(prompt, 1).ttft_ms)
            figures.append(
                Figure(
                    PART,
                    f"{length}-token prompt, warm",
                    median(warm_ms),
                    "ms",
                    "cold",
                    cold_ms,
                    samples={"warm": warm_ms},
                )
            )
    return figures
