"""Counters of the cache, per host and per model namespace: what happened, and what is there. Pure."""

from collections import Counter
from dataclasses import dataclass

from erllama_host.kv.reuse import MissReason
from erllama_host.kv.segment import SegmentKind, SegmentMeta


@dataclass(slots=True)
class Census:
    """What is stored of one model now; kept up to date, since counting 100 000 segments would hold up the loop."""

    segments: int = 0
    tokens: int = 0
    bytes: int = 0


class Tally:
    """Counts since the daemon started; never goes back."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.by_namespace: dict[bytes, Counter[str]] = {}
        self.stored: dict[bytes, Census] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a host-wide counter."""
        self.counters[name] += by

    def for_namespace(self, namespace: bytes, name: str, by: int = 1) -> None:
        """Add to a counter of a model, and of the host."""
        counters = self.by_namespace.get(namespace)
        if counters is None:
            counters = self.by_namespace[namespace] = Counter()
        counters[name] += by
        self.counters[name] += by

    def entry_changed(self, meta: SegmentMeta, by: int, num_bytes: int) -> None:
        """`by` segments (1 or −1) like this one are stored more, of that many bytes."""
        census = self.stored.setdefault(meta.namespace, Census())
        census.segments += by
        census.tokens += by * (0 if meta.kind is SegmentKind.LOGITS else meta.num_tokens)
        census.bytes += by * num_bytes

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
