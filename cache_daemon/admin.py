"""The operator's view: the operations of the `cache` call. Owner of nothing; asks and tells the catalog."""

import time
from collections import Counter, deque
from collections.abc import Callable
from string import hexdigits
from typing import Any

import msgspec

from cache_daemon.background import Background
from cache_daemon.catalog import Catalog
from cache_daemon.entries import Entry, Identity
from cache_daemon.eviction import rank_of
from cache_daemon.peers import PeerTable
from cache_daemon.recovery import RecoveryReport
from cache_daemon.segment_files import inode_of_good_file
from erllama_host.errors import InvalidRequest
from erllama_host.kv.keys import KEY_BYTES
from erllama_host.kv.segment import SegmentKind
from erllama_host.protocol import cache as m
from erllama_host.protocol.calls import CacheAnswer

Later = Callable[[CacheAnswer], None]

MIN_KEY_DIGITS = 8
"""Of a key that is given by its first digits."""

VERIFY_BATCH = 16
"""Segments under a lease of `verify` at a time. A lease keeps a file from being overwritten under the comparison; but what is
leased cannot be evicted either, and reading a whole disk takes longer than a lease lasts."""


class Admin:
    """Handles `stats`, `ls`, `gc`, `evict`, `verify`, `pin`, `unpin`, `shrink`."""

    def __init__(self, catalog: Catalog, peers: PeerTable, report: RecoveryReport, verifier: Background) -> None:
        self._catalog = catalog
        self._peers = peers
        self._report = report
        self._verifier = verifier
        self._ops: dict[str, Callable[[Any, float], dict[str, Any]]] = {
            "stats": self._stats,
            "ls": self._list,
            "gc": self._gc,
            "evict": self._evict,
            "pin": lambda arguments, _: self._pin(arguments.key, True),
            "unpin": lambda arguments, _: self._pin(arguments.key, False),
            "shrink": self._shrink,
        }

    def call(self, op: str, arguments: dict[str, Any], now: float, later: Later) -> CacheAnswer | None:
        """Run an operation. None: `later` gets the answer.

        Raises:
            InvalidRequest: unknown operation or wrong arguments.
        """
        if op not in m.CACHE_OPS:
            raise InvalidRequest(f"unknown cache operation {op!r}; there are {', '.join(m.CACHE_OPS)}", field="op")
        try:
            checked: Any = msgspec.convert(arguments, m.CACHE_OPS[op])
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"cache {op}: {error}", field="arguments") from error
        if op == "verify":
            self._verify(checked, later)
            return None
        return CacheAnswer(result=self._ops[op](checked, now))

    # ---- looking -------------------------------------------------------------------------------------------------

    def _stats(self, _arguments: m.Stats, _now: float) -> dict[str, Any]:
        catalog = self._catalog
        tiers = {
            name: {
                "kind": stock.spec.kind,
                "path": stock.spec.path,
                "segments": stock.num_segments,
                "recyclable_files": len(stock.pool),
                **stock.ledger.as_dict(),
            }
            for name, stock in catalog.holdings.stocks.items()
        }
        return {
            "tiers": tiers,
            "models": self._models(),
            "segments": len(catalog.holdings.entries),
            "leases": len(catalog.leases),
            "reservations": len(catalog.reservations),
            "workers": [{"model": p.model_id, "pid": p.pid, "tier": p.tier} for p in self._peers.all()],
            "recovering": catalog.recovering,
            "recovery": {
                "adopted": self._report.num_adopted,
                "took_s": round(self._report.took_s, 3),
                "not_adopted": dict(self._report.num_by_worth),
            },
            "counters": dict(catalog.holdings.tally.counters),
        }

    def _models(self) -> dict[str, dict[str, int]]:
        models: dict[str, Counter[str]] = {}
        for namespace, census in self._catalog.holdings.tally.stored.items():
            counts = models.setdefault(self._peers.model_of(namespace), Counter())
            counts.update(segments=census.segments, tokens=census.tokens, bytes=census.bytes)
        for namespace, counters in self._catalog.holdings.tally.by_namespace.items():
            models.setdefault(self._peers.model_of(namespace), Counter()).update(counters)
        return {model: dict(counts) for model, counts in sorted(models.items())}

    def _list(self, arguments: m.List, now: float) -> dict[str, Any]:
        entries = self._entries_of(arguments.model)
        entries.sort(
            key=lambda e: rank_of(e, len(e.copies), self._catalog.holdings.index.is_orphan(e.meta)), reverse=True
        )
        shown = [self._row(entry, now) for entry in entries[: max(0, arguments.limit)]]
        return {"segments": shown, "total": len(entries)}

    def _row(self, entry: Entry, now: float) -> dict[str, Any]:
        wall = now + self._catalog.settings.wall_offset_s
        return {
            "key": entry.meta.key.hex(),
            "kind": entry.meta.kind.name.lower(),
            "model": self._peers.model_of(entry.meta.namespace),
            "start": entry.meta.start,
            "end": entry.meta.end,
            "bytes": max(copy.file_bytes for copy in entry.copies.values()),
            "tiers": sorted(entry.copies),
            "reason": entry.meta.reason.name.lower(),
            "hits": entry.hits,
            "idle_s": round(max(0.0, wall - entry.last_used_s), 1),
            "age_s": round(max(0.0, wall - entry.created_s), 1),
            "pinned": entry.pinned,
            "leased": self._catalog.leases.is_leased(entry.identity),
            "superseded": entry.superseded,
        }

    def _entries_of(self, model: str | None) -> list[Entry]:
        entries = list(self._catalog.holdings.entries.values())
        if model is None:
            return entries
        spaces = self._peers.namespaces.get(model)
        if spaces is None:
            raise InvalidRequest(f"no model {model!r} has used the cache since the daemon started", field="model")
        return [entry for entry in entries if entry.meta.namespace in spaces]

    # ---- acting --------------------------------------------------------------------------------------------------

    def _gc(self, _arguments: m.Gc, _now: float) -> dict[str, Any]:
        dropped, freed = 0, 0
        for identity in self._catalog.holdings.worthless():
            num_bytes = self._catalog.holdings.evict_entry(identity)
            dropped += bool(num_bytes)
            freed += num_bytes
        freed_pool = sum(self._catalog.holdings.empty_pool(tier) for tier in self._catalog.holdings.stocks)
        return {"dropped_segments": dropped, "freed_bytes": freed, "freed_recyclable_bytes": freed_pool}

    def _evict(self, arguments: m.EvictSegments, _now: float) -> dict[str, Any]:
        if [arguments.model is not None, arguments.key is not None, arguments.everything].count(True) != 1:
            raise InvalidRequest("cache evict: give exactly one of model, key, everything", field="arguments")
        if arguments.key is not None:
            wanted = self._below(self._key(arguments.key))
        else:
            wanted = [entry.identity for entry in self._entries_of(arguments.model)]
        wanted.sort(key=self._order)
        dropped, freed = 0, 0
        for identity in wanted:
            num_bytes = self._catalog.holdings.evict_entry(identity, pinned=arguments.pinned)
            dropped += bool(num_bytes)
            freed += num_bytes
        if arguments.everything:
            freed += sum(self._catalog.holdings.empty_pool(tier) for tier in self._catalog.holdings.stocks)
        return {"dropped_segments": dropped, "freed_bytes": freed, "kept_segments": len(wanted) - dropped}

    def _order(self, identity: Identity) -> tuple[int, int]:
        """Descendants before ancestors; at one end, blocks last."""
        meta = self._catalog.holdings.entries[identity].meta
        return -meta.end, -int(meta.kind)

    def _key(self, text: str) -> bytes:
        """The key that begins with these hex digits."""
        digits = text.lower()
        if not MIN_KEY_DIGITS <= len(digits) <= 2 * KEY_BYTES or set(digits) - set(hexdigits):
            raise InvalidRequest(
                f"cache: {text!r} is not a key: {MIN_KEY_DIGITS} to {2 * KEY_BYTES} hex digits, as `cache ls` shows them",
                field="key",
            )
        if len(digits) == 2 * KEY_BYTES:
            return bytes.fromhex(digits)
        found = {key for key, _ in self._catalog.holdings.entries if key.hex().startswith(digits)}
        if len(found) > 1:
            raise InvalidRequest(f"cache: {len(found)} keys begin with {text}; give more digits", field="key")
        if not found:
            raise InvalidRequest("cache: no segment has that key", field="key")
        return found.pop()

    def _below(self, key: bytes) -> list[Identity]:
        """Every segment with that key, and what hangs below."""
        entries, index = self._catalog.holdings.entries, self._catalog.holdings.index
        found = dict.fromkeys((key, kind) for kind in SegmentKind if (key, kind) in entries)
        todo = [key]
        while todo:
            for child in index.children(todo.pop()):
                if child not in found:
                    found[child] = None
                    todo.append(child[0])
                    logits = (child[0], SegmentKind.LOGITS)
                    if logits in entries:
                        found[logits] = None
        if not found:
            raise InvalidRequest("cache: no segment has that key", field="key")
        return list(found)

    def _pin(self, key_text: str, pinned: bool) -> dict[str, Any]:
        key = self._key(key_text)
        found = [(key, kind) for kind in SegmentKind if (key, kind) in self._catalog.holdings.entries]
        if not found:
            raise InvalidRequest("cache: no segment has that key", field="key")
        for identity in found:
            self._catalog.holdings.pin(identity, pinned)
        return {"segments": len(found), "pinned": pinned}

    def _shrink(self, arguments: m.Shrink, _now: float) -> dict[str, Any]:
        stocks = [s for s in self._catalog.holdings.stocks.values() if s.spec.is_shared_memory]
        used = sum(stock.ledger.used_bytes for stock in stocks)
        excess, freed = max(0, used - arguments.target_bytes), 0
        for stock in stocks:
            target = max(0, stock.ledger.used_bytes - stock.ledger.unlinked_bytes - (excess - freed))
            freed += self._catalog.holdings.trim(stock.spec.name, target)
        return {"freed_bytes": freed, "used_bytes": used - freed}

    def _verify(self, arguments: m.VerifyFiles, later: Later) -> None:
        """Checksums are compared in a background thread, and not of all segments at a time: see `VERIFY_BATCH`."""
        todo = deque(entry.identity for entry in self._entries_of(arguments.model))
        self._verify_next(todo, {"checked_files": 0, "corrupt_files": 0}, later)

    def _verify_next(self, todo: deque[Identity], result: dict[str, Any], later: Later) -> None:
        catalog = self._catalog
        batch: list[Identity] = []
        while todo and len(batch) < VERIFY_BATCH:
            if (identity := todo.popleft()) in catalog.holdings.entries:
                batch.append(identity)
        if not batch:
            later(CacheAnswer(result=result))
            return
        lease = catalog.leases.grant("verify", batch, time.monotonic())
        paths = [
            (identity, tier, catalog.holdings.path_of(identity, tier))
            for identity in batch
            for tier in catalog.holdings.entries[identity].copies
        ]

        def job() -> list[tuple[Identity, str]]:
            return [(identity, tier) for identity, tier, path in paths if inode_of_good_file(path) is None]

        def done(bad: list[tuple[Identity, str]]) -> None:
            catalog.release(lease, "verify")
            for identity, tier in bad:
                catalog.holdings.drop_corrupt(identity, tier)
            result["checked_files"] += len(paths)
            result["corrupt_files"] += len(bad)
            self._verify_next(todo, result, later)

        self._verifier.submit(job, done)
