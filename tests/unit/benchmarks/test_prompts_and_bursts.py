"""The text generator and the burst runner of the benchmarks."""

import time
from collections.abc import Callable, Sequence

import pytest

from benchmarks.systems import Timing, aggregate_tokens_per_s, burst, never, streaming
from benchmarks.text import Corpus, prose


def test_prose_is_the_same_for_a_seed_and_differs_between_seeds() -> None:
    assert prose(1, 50) == prose(1, 50)
    assert prose(1, 50)[:40] != prose(2, 50)[:40]
    assert len(prose(3, 500).split()) >= 500


def test_shorter_prompts_are_prefixes_of_longer_ones() -> None:
    corpus = Corpus(lambda text: list(text.encode()))
    assert corpus.prompt(1, 20) == corpus.prompt(1, 200)[:20]
    assert len(corpus.prompt(1, 200)) == 200


def test_a_tokeniser_with_too_few_tokens_is_noticed() -> None:
    with pytest.raises(ValueError, match="seed 1"):
        Corpus(lambda text: [1]).prompt(1, 20)


class _Echo:
    """A system that answers at once, or fails on a prompt of its choice."""

    name = "echo"

    def stream(self, prompt: Sequence[int], num_tokens: int, is_enough: Callable[[], bool] = never) -> Timing:
        if prompt[0] < 0:
            raise OSError("gone")
        return Timing(called_at_s=1.0, arrivals_ms=(float(prompt[0]), 9.0), total_ms=9.0, num_tokens=num_tokens)


def test_a_burst_keeps_the_order_of_its_prompts() -> None:
    timings, wall_s = burst(_Echo(), [[3], [1], [2]], 5)
    assert [timing.ttft_ms for timing in timings] == [3.0, 1.0, 2.0]
    assert 0 < wall_s < 60


def test_the_aggregate_counts_every_stream() -> None:
    started = time.perf_counter()
    rate = aggregate_tokens_per_s(_Echo(), [[1], [2]], 10)
    assert rate >= 20 / (time.perf_counter() - started)


def test_timings_tell_rates_and_moments() -> None:
    timing = Timing(called_at_s=2.0, arrivals_ms=(100.0, 600.0, 1100.0), total_ms=1100.0, num_tokens=101)
    assert timing.decode_tokens_per_s == pytest.approx(100.0)
    assert timing.moments_s() == pytest.approx([2.1, 2.6, 3.1])


def test_a_failed_request_fails_the_burst() -> None:
    with pytest.raises(OSError, match="gone"):
        burst(_Echo(), [[1], [-1]], 5)


class _Endless:
    """A system whose streams go on until they are cut off."""

    name = "endless"

    def stream(self, prompt: Sequence[int], num_tokens: int, is_enough: Callable[[], bool] = never) -> Timing:
        sent = 0
        while not is_enough():
            sent += 1
        return Timing(called_at_s=0.0, arrivals_ms=(), total_ms=0.0, num_tokens=sent)


def test_streams_run_during_the_block_and_are_cut_off_at_its_end() -> None:
    with streaming(_Endless(), [[1], [2]], 5) as timings:
        assert not timings
    assert len(timings) == 2
    assert all(timing.num_tokens > 0 for timing in timings)


def test_a_stream_that_fails_fails_the_block() -> None:
    with pytest.raises(OSError, match="gone"), streaming(_Echo(), [[-1]], 5):
        pass
