"""From a SIGKILL to the next answer, for each process of the host, and what another model's stream notices of it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.arithmetic import largest_gap, median
from benchmarks.figures import Figure, Target
from benchmarks.host import STUB_PROMPT, BenchmarkHost, HostModel, benchmark_host
from benchmarks.inprocess import in_process_loop
from benchmarks.processes import CACHE, CONTROLLER
from benchmarks.setting import Setting, think
from erllama_host import ErllamaError

PART = "recovery"
VICTIM = "victim"
BYSTANDER = "bystander"
N_CTX = 2048
PROMPT_TOKENS = 64
SERVING_TIMEOUT_S = 60.0
BYSTANDER_TOKEN_MS = 10.0
BYSTANDER_TOKENS = 20_000
MAX_RESTARTS = "ERLLAMA_MAX_RESTARTS"
PROMISED_MS = 500.0
"""A worker serves again within its model's load time and so much more."""


def run(setting: Setting) -> list[Figure]:
    """From the signal to the answer of a call made right after it: a token, the controller's hello, the cache's counters.

    Another model's stream runs meanwhile. The supervisor's limits are raised, since here the restarts are meant.
    """
    with in_process_loop(setting.model, N_CTX) as loop:
        bare_load_ms = loop.load_s * 1e3
    prompt = setting.corpus.prompt(900, PROMPT_TOKENS)
    with _unlimited_restarts(), benchmark_host() as host:
        victim = host.load(setting.model, VICTIM, n_ctx=N_CTX, n_seq_max=1)
        other = host.load_stub(
            BYSTANDER, stub={"token_ms": BYSTANDER_TOKEN_MS}, n_ctx=2 * BYSTANDER_TOKENS, n_seq_max=1
        )
        victim.stream(prompt, 1)
        roles: dict[str, Callable[[], object]] = {
            f"model:{VICTIM}": lambda: victim.stream(prompt, 1),
            CONTROLLER: host.client.hello,
            CACHE: lambda: _until(lambda: host.client.counters().get("cache_available") == 1),
        }
        figures = []
        for role, serves in roles.items():
            setting.say(f"killing {role}")
            with _listening(other) as moments:
                samples = [_kill_and_wait(host, role, serves) for _ in range(setting.repeats(20, 3))]
            figures += _figures(role, samples, bare_load_ms, largest_gap(moments) * 1e3)
    return figures


def _kill_and_wait(host: BenchmarkHost, role: str, serves: Callable[[], object]) -> float:
    """Milliseconds from the signal until the role's new process has answered."""
    think()
    before = host.process(role).process
    killed_at = time.perf_counter()
    before.kill()
    serves()
    recovered_ms = (time.perf_counter() - killed_at) * 1e3
    after = host.process(role).process
    if after.pid == before.pid:
        raise RuntimeError(f"{role} was killed and the same process answered")
    return recovered_ms


def _figures(role: str, samples: list[float], bare_load_ms: float, gap_ms: float) -> list[Figure]:
    """A worker's are held against what supervision promises."""
    is_model = role.startswith("model:")
    who = "worker" if is_model else "cache daemon" if role == CACHE else role
    against = f"bare load of the model, {bare_load_ms:.0f} ms, and {PROMISED_MS:.0f} ms" if is_model else ""
    promised_ms = bare_load_ms + PROMISED_MS if is_model else None
    target = Target(at_most=1) if is_model else None
    name = f"{who} killed → serving again,"
    return [
        Figure(
            PART,
            f"{name} median of {len(samples)}",
            median(samples),
            "ms",
            against,
            promised_ms,
            target,
            samples={"host": samples},
        ),
        Figure(PART, f"{name} longest of {len(samples)}", max(samples), "ms", against, promised_ms, target),
        Figure(PART, f"worst gap of another model's stream while the {who} is killed", gap_ms, "ms"),
    ]


@contextmanager
def _listening(model: HostModel) -> Iterator[list[float]]:
    """A stream of `model` runs during the block; the list fills with the moments (s) at which its tokens arrived.

    Raises:
        ErllamaError: the stream failed.
    """
    moments: list[float] = []
    failures: list[ErllamaError] = []
    stream = model.model.infer(STUB_PROMPT, max_tokens=BYSTANDER_TOKENS, ignore_eos=True)

    def listen() -> None:
        try:
            for _piece in stream:
                moments.append(time.perf_counter())
        except ErllamaError as error:
            failures.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        _until(lambda: bool(moments or failures))
        yield moments
    finally:
        stream.cancel()
        thread.join(SERVING_TIMEOUT_S)
    if failures:
        raise failures[0]


def _until(holds: Callable[[], bool]) -> None:
    """Poll until `holds`.

    Raises:
        TimeoutError: it did not within SERVING_TIMEOUT_S.
    """
    deadline = time.monotonic() + SERVING_TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not serving again within {SERVING_TIMEOUT_S:.0f} s")
        time.sleep(0.005)


@contextmanager
def _unlimited_restarts() -> Iterator[None]:
    """The supervisor takes its limits for the host's own processes from the environment it is started in."""
    before = os.environ.get(MAX_RESTARTS)
    os.environ[MAX_RESTARTS] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ[MAX_RESTARTS]
        else:
            os.environ[MAX_RESTARTS] = before
