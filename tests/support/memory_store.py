"""A cache client without a daemon: real matching over segments kept in memory, and mishaps on request.

`manual`: answers come only when the test calls `deliver`. `away`: nobody answers. `slow_s`: every answer takes so long, in a time
that is not waited for: one that comes after its call's deadline is too late. `refuse`: no room. `losing`: what is published is
lost. `racing`: every segment read turns out to be overwritten. `explain`: why something was missed. `num_leases` and `num_open`
must be 0 once nothing is going on.
"""

import ctypes
import time

from cache_daemon.prefix_index import PrefixIndex, Prompt, depends_on_parent
from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SegmentKind
from workers.kv_types import AlreadyThere, LookupResult, Pending, Refused


class _Stored:
    def __init__(self, meta, capacity):
        self.meta = meta
        self.buffer = (ctypes.c_uint8 * capacity)()
        self.size = 0
        self.pinned = False


class _Room:
    def __init__(self, stored, capacity):
        self.meta = stored.meta
        self.stored = stored
        self.address = ctypes.addressof(stored.buffer)
        self.capacity_bytes = capacity


class _Leased:
    def __init__(self, store, stored, use_end):
        self._store = store
        self.meta = stored.meta
        self.use_end = use_end
        self.tier = "ram"
        self.address = ctypes.addressof(stored.buffer)
        self.num_bytes = stored.size

    def intact(self):
        self._store.num_reads += 1
        return not self._store.racing


class MemoryStore:
    def __init__(self, block_tokens=256, timeout_s=0.25):
        self.block_tokens = block_tokens
        self.timeout_s = timeout_s
        self.index = PrefixIndex(block_tokens)
        self.stored = {}
        self.writing = set()
        self.manual = self.away = self.racing = self.closed = False
        self.losing = False
        self.slow_s = 0.0
        self.refuse = self.explain = None
        self.num_leases = self.num_open = self.num_reads = self.num_lookups = 0
        self.num_reserved = self.num_unpublished = 0
        self.queries = []
        self._undelivered = []
        self.wake = lambda: None

    def make(self, namespace, wake):
        """As `make_store` of the engine; one store may serve several lives of a worker."""
        self.namespace, self.wake = namespace, wake
        return self

    # --- reading ------------------------------------------------------------------------------------------------------

    def lookup(self, query, timeout_s=None):
        self.num_lookups += 1
        self.queries.append(query)
        return self._later(
            timeout_s, lambda: LookupResult(miss_reason=MissReason.DAEMON_AWAY), lambda: self._find(query)
        )

    def _find(self, query):
        prompt = Prompt(query.root, query.block_keys, query.tokens, query.prompt_key, query.reuse)
        match = self.index.match(prompt)
        if match.parts or match.logits:
            self.num_leases += 1
        whole = match.hit_len == len(query.tokens) // 4
        return LookupResult(
            hit_len=match.hit_len,
            segments=[_Leased(self, self.stored[identity], use_end) for identity, use_end in match.parts],
            logits=_Leased(self, self.stored[match.logits], match.hit_len) if match.logits else None,
            miss_reason=None if whole else self.explain or MissReason.NEVER_SEEN,
            diverged_at=match.diverged_at,
            lookup_ms=0.1,
            lease=1 if match.parts or match.logits else None,
        )

    def release(self, result):
        if result.lease is not None:
            result.lease = None
            self.num_leases -= 1

    # --- writing ------------------------------------------------------------------------------------------------------

    def reserve(self, specs, timeout_s=None):
        def refused():
            return [Refused(spec.meta.key, spec.meta.kind, Refusal.DAEMON_AWAY) for spec in specs]

        return self._later(timeout_s, refused, lambda: [self._reserve(spec) for spec in specs])

    def _reserve(self, spec):
        self.num_reserved += 1
        identity = (spec.meta.key, spec.meta.kind)
        if identity in self.stored:
            self.stored[identity].pinned |= spec.meta.reason.name == "PREFIX"
            return AlreadyThere(*identity)
        if identity in self.writing:
            return Refused(*identity, Refusal.BEING_WRITTEN)
        if self.refuse is not None:
            return Refused(*identity, self.refuse)
        parent = (spec.meta.parent, SegmentKind.BLOCK)
        if depends_on_parent(spec.meta) and parent not in self.stored and parent not in self.writing:
            return Refused(*identity, Refusal.NO_PARENT)
        self.writing.add(identity)
        self.num_open += 1
        return _Room(_Stored(spec.meta, spec.capacity_bytes), spec.capacity_bytes)

    def publish(self, room, payload_bytes):
        identity = (room.meta.key, room.meta.kind)
        room.stored.size = payload_bytes
        room.stored.pinned = room.meta.reason.name == "PREFIX"
        self.writing.discard(identity)
        self.num_open -= 1
        if self.losing:
            self.num_unpublished += 1
            return
        self.stored[identity] = room.stored
        self.index.add(room.meta)

    def evict(self, identity):
        """Forget a segment, as a full tier would."""
        del self.stored[identity]
        self.index.remove(identity)

    def abort(self, room):
        self.writing.discard((room.meta.key, room.meta.kind))
        self.num_open -= 1

    def flush(self, deadline_s):
        return not self.away

    refused = ""

    @property
    def connected(self):
        return not self.away

    def counters(self):
        return {"lookups": self.num_lookups}

    def close(self, deadline_s):
        self.closed = True

    # --- time ---------------------------------------------------------------------------------------------------------

    def _later(self, timeout_s, fallback, answer):
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        pending = Pending(time.monotonic() + (0.0 if self.away else wait_s), fallback)
        if self.away:
            return pending
        if self.slow_s > wait_s:
            pending.resolve(fallback())
            self._undo(answer())
        elif self.manual:
            self._undelivered.append((pending, answer))
        else:
            pending.resolve(answer())
        return pending

    def deliver(self):
        """Answer everything asked so far."""
        todo, self._undelivered = self._undelivered, []
        for pending, answer in todo:
            value = answer()
            if not pending.resolve(value):
                self._undo(value)  # too late: as the real client does
        self.wake()

    def _undo(self, value):
        if isinstance(value, LookupResult):
            self.release(value)
        else:
            for room in value:
                if isinstance(room, _Room):
                    self.abort(room)

    def kinds(self):
        """How many segments of each kind are stored, by name."""
        counts = {}
        for _, kind in self.stored:
            counts[kind.name] = counts.get(kind.name, 0) + 1
        return counts

    def of_kind(self, kind: SegmentKind):
        return [stored.meta for (_, one), stored in self.stored.items() if one is kind]
