"""Statistics of a handful of samples. Pure."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence


def median(samples: Sequence[float]) -> float:
    """Middle of `samples`.

    Raises:
        ValueError: there are none.
    """
    if not samples:
        raise ValueError("no samples")
    return float(statistics.median(samples))


def mean(samples: Sequence[float]) -> float:
    """Arithmetic mean.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    return float(statistics.fmean(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` % of the samples do not exceed (nearest rank: never an invented value).

    Raises:
        ValueError: no samples, or percent outside of (0, 100].
    """
    if not samples:
        raise ValueError("no samples")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be in (0, 100], got {percent}")
    rank = math.ceil(percent / 100 * len(samples))
    return float(sorted(samples)[rank - 1])


def largest_gap(moments: Sequence[float]) -> float:
    """The longest time between two neighbours of an ascending list; 0 when there are fewer than two."""
    return max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)


def interleaved(runs: Mapping[str, Callable[[int], float]], repeats: int) -> dict[str, list[float]]:
    """Run every entry `repeats` times, turn by turn, so that a slow minute of the machine hurts all of them alike.

    Each round starts with another entry: none is always the one that meets cold CPU caches.

    Args:
        runs: name → a function of the round's number that returns one sample.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(runs[name](number))
    return samples
