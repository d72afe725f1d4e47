"""Statistics of the benchmarks."""

import pytest

from benchmarks.arithmetic import interleaved, largest_gap, mean, median, percentile


def test_median_and_mean() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([1.0, 2.0]) == 1.5
    assert mean([1.0, 2.0, 6.0]) == 3.0
    for statistic in (median, mean):
        with pytest.raises(ValueError, match="no samples"):
            statistic([])


def test_percentile_is_always_one_of_the_samples() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert percentile(samples, 50) == 50.0
    assert percentile(samples, 99) == 99.0
    assert percentile(samples, 100) == 100.0
    assert percentile([7.0], 1) == 7.0


@pytest.mark.parametrize("percent", [0, -1, 100.1])
def test_percentile_refuses_nonsense(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile([1.0], percent)


def test_largest_gap() -> None:
    assert largest_gap([0.0, 1.0, 5.0, 6.0]) == 4.0
    assert largest_gap([3.0]) == 0.0
    assert largest_gap([]) == 0.0


def test_interleaved_takes_turns_and_changes_who_begins() -> None:
    order: list[str] = []

    def sampler(name: str):
        return lambda number: order.append(f"{name}{number}") or float(number)

    samples = interleaved({"a": sampler("a"), "b": sampler("b")}, 3)
    assert samples == {"a": [0.0, 1.0, 2.0], "b": [0.0, 1.0, 2.0]}
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
