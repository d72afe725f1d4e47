"""The engine's figures by name: monotonic, read by the service through `EngineSnapshot.counters`."""

from collections import defaultdict
from typing import TypeAlias

Counters: TypeAlias = defaultdict[str, float]


def new_counters() -> Counters:
    """All zero."""
    return defaultdict(float)
