"""Counters of the cache, per host and per model namespace. Pure."""

from collections import Counter

from erllama_host.kv.reuse import MissReason
from erllama_host.kv.segment import SegmentMeta


class Tally:
    """Counts since the daemon started; never goes back."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.by_namespace: dict[bytes, Counter[str]] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a host-wide counter."""
        self.counters[name] += by

    def for_namespace(self, namespace: bytes, name: str, by: int = 1) -> None:
        """Add to a counter of a model, and of the host."""
        self.by_namespace.setdefault(namespace, Counter())[name] += by
        self.counters[name] += by

    def published(self, meta: SegmentMeta, num_bytes: int) -> None:
        """A segment became visible."""
        self.for_namespace(meta.namespace, "saves")
        self.for_namespace(meta.namespace, f"saves_{meta.reason.name.lower()}")
        self.for_namespace(meta.namespace, "saved_bytes", num_bytes)

    def dropped(self, meta: SegmentMeta, num_bytes: int, reason: MissReason) -> None:
        """A copy was removed."""
        if reason is MissReason.EVICTED:
            self.for_namespace(meta.namespace, "evictions")
            self.for_namespace(meta.namespace, "evicted_bytes", num_bytes)

    def looked_up(self, namespace: bytes, hit_len: int, prompt_len: int) -> None:
        """A lookup was answered."""
        name = "hits_exact" if hit_len == prompt_len else "hits_partial" if hit_len else "misses"
        self.for_namespace(namespace, name)
        self.for_namespace(namespace, "hit_tokens", hit_len)
