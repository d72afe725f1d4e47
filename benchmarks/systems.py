"""What is compared: systems that stream tokens. The clock starts when the call is made and is read at the client."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

LEAD_S = 0.5
"""How long streams run alone before something begins beside them."""


def never() -> bool:
    """A stream that is not cut off."""
    return False


@dataclass(frozen=True)
class Timing:
    """One streamed request, in milliseconds from the call.

    Attributes:
        called_at_s: `time.perf_counter()` of the call.
        arrivals_ms: when each message with tokens arrived.
        num_tokens: tokens received in all.
        kind: how the host says its cache was hit; empty for peers.
    """

    called_at_s: float
    arrivals_ms: tuple[float, ...]
    total_ms: float
    num_tokens: int
    kind: str = ""

    @property
    def ttft_ms(self) -> float:
        """Request made → first token read."""
        return self.arrivals_ms[0]

    @property
    def decode_tokens_per_s(self) -> float:
        """Rate from the first token to the last; the first message carries one token."""
        return (self.num_tokens - 1) / (self.arrivals_ms[-1] - self.arrivals_ms[0]) * 1e3

    def moments_s(self) -> list[float]:
        """The arrivals on the clock of `called_at_s`."""
        return [self.called_at_s + arrival / 1e3 for arrival in self.arrivals_ms]


class System(Protocol):
    """A server of one model, with room for as many streams as are asked of it at a time."""

    name: str

    def stream(self, prompt: Sequence[int], num_tokens: int, is_enough: Callable[[], bool] = never) -> Timing:
        """Generate `num_tokens` greedily, past any end token. Called from several threads at a time.

        Args:
            is_enough: asked at each message with tokens; True cuts the stream off.
        """


def burst(system: System, prompts: Sequence[Sequence[int]], num_tokens: int) -> tuple[list[Timing], float]:
    """Send all prompts at once, one thread each.

    Returns:
        The timings in the order of `prompts`, and the seconds from the start until the last one ended.

    Raises:
        Exception: whatever the first failing request raised.
    """
    timings: list[Timing | None] = [None] * len(prompts)
    failures: list[Exception] = []
    gate = threading.Barrier(len(prompts) + 1)

    def ask(index: int) -> None:
        gate.wait()
        try:
            timings[index] = system.stream(prompts[index], num_tokens)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - started
    if failures:
        raise failures[0]
    return [timing for timing in timings if timing is not None], wall_s


@contextmanager
def streaming(system: System, prompts: Sequence[Sequence[int]], num_tokens: int) -> Iterator[list[Timing]]:
    """Streams that run before and during the block, a thread each, and are cut off at its end. The list has their timings then.

    Raises:
        Exception: whatever the first failing stream raised.
    """
    timings: list[Timing] = []
    failures: list[Exception] = []
    began = [threading.Event() for _ in prompts]
    over = threading.Event()

    def listen(prompt: Sequence[int], has_begun: threading.Event) -> None:
        def is_enough() -> bool:
            has_begun.set()
            return over.is_set()

        try:
            timings.append(system.stream(prompt, num_tokens, is_enough))
        except Exception as error:
            failures.append(error)
            has_begun.set()

    threads = [threading.Thread(target=listen, args=arguments) for arguments in zip(prompts, began, strict=True)]
    for thread in threads:
        thread.start()
    try:
        for has_begun in began:
            has_begun.wait()
        time.sleep(LEAD_S)
        yield timings
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def aggregate_tokens_per_s(system: System, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
    """Tokens per second of all streams together, from the first request sent to the last token read."""
    timings, wall_s = burst(system, prompts, num_tokens)
    return sum(timing.num_tokens for timing in timings) / wall_s


def gaps_within(stream: Timing, start: float, end: float) -> list[float]:
    """Milliseconds between neighbouring arrivals of `stream` that overlap [start, end), on the clock of `time.perf_counter()`."""
    moments = stream.moments_s()
    return [
        (later - earlier) * 1e3 for earlier, later in itertools.pairwise(moments) if later > start and earlier < end
    ]
