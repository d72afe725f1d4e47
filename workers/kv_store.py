"""The worker's way to the cache: non-blocking calls for the engine thread, one I/O thread that does the rest.

The cache is optional for correctness. Every call has a deadline; a daemon that is away, hung or slow makes a lookup a
miss (`MissReason.DAEMON_AWAY`) and a reservation a refusal, never an exception and never a wait in a tick. KV bytes
are copied by the engine only, between llama.cpp and a mapping; this module hands out addresses.

Use, from the engine thread alone:

    pending = store.lookup(query)            # returns at once; poll pending.done() every tick
    result = pending.result()
    for segment in result.segments:          # copy from segment.address, check segment.intact() before and after
        ...
    store.release(result)                    # always, whatever happened

    pending = store.reserve([SegmentSpec(meta, capacity_bytes), ...])
    for outcome in pending.result():         # Reservation | AlreadyThere | Refused, in the order asked for
        ...                                  # pack into outcome.address
        store.publish(outcome, payload_bytes)
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SegmentKind
from workers.kv_types import (
    LookupQuery,
    LookupResult,
    Pending,
    Refused,
    Reservation,
    ReserveOutcome,
    SegmentSpec,
)

DEFAULT_TIMEOUT_S = 0.25


class KvStore:
    """Client of the cache daemon for one worker. See the module docstring for the rules and an example."""

    def __init__(
        self,
        *,
        endpoint: str,
        model_id: str,
        incarnation: str,
        namespace: bytes,
        tier: str,
        on_wake: Callable[[], None],
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Start the I/O thread; it connects, says hello, and does so again whenever the daemon comes back.

        Args:
            endpoint: `ipc://…/cache.sock`. Nothing needs to listen there yet.
            namespace: root key of the model without adapters (32 bytes).
            tier: name of the tier that this model's rows must reach.
            on_wake: called in the I/O thread whenever a Pending was resolved; must only set a flag or wake a poller.
            timeout_s: default deadline of a call.
        """
        self.model_id = model_id
        self.namespace = namespace
        self._timeout_s = timeout_s

    def lookup(self, query: LookupQuery, timeout_s: float | None = None) -> Pending[LookupResult]:
        """Ask for the longest stored prefix of a prompt; everything found is leased in one message.

        `query.wait_ms` is added to the deadline. A late answer is released by the store itself.
        """
        deadline = self._deadline(timeout_s, query.wait_ms / 1000)
        return Pending(deadline, lambda: LookupResult(miss_reason=MissReason.DAEMON_AWAY))

    def release(self, result: LookupResult) -> None:
        """End the lease of a lookup's answer; its addresses must not be read any more. Harmless without a lease."""

    def missing(
        self, identities: Sequence[tuple[bytes, SegmentKind]], timeout_s: float | None = None
    ) -> Pending[list[bool]]:
        """Which of these (key, kind) are neither stored nor being written. Daemon away: none (nothing to pack)."""
        count = len(identities)
        return Pending(self._deadline(timeout_s), lambda: [False] * count)

    def reserve(self, specs: Sequence[SegmentSpec], timeout_s: float | None = None) -> Pending[list[ReserveOutcome]]:
        """Ask for room for segments, parents before children; the result has one outcome per spec, in order."""
        wanted = [(spec.meta.key, spec.meta.kind) for spec in specs]
        return Pending(
            self._deadline(timeout_s), lambda: [Refused(key, kind, Refusal.DAEMON_AWAY) for key, kind in wanted]
        )

    def publish(self, reservation: Reservation, payload_bytes: int) -> None:
        """Publish a packed segment, asynchronously and in order: checksum, header, link, announce.

        Args:
            payload_bytes: what was really packed, at most `reservation.capacity_bytes`.
        The region belongs to the store from here on. `pending_count` counts it until the daemon has answered.
        """

    def abort(self, reservation: Reservation) -> None:
        """Give a reservation back unused (packing failed, the request went away)."""

    def is_publishing(self, key: bytes) -> bool:
        """Whether a segment with this key was given to `publish` and has not been announced yet."""
        return False

    def pending_count(self) -> int:
        """Segments given to `publish` that the daemon has not confirmed yet."""
        return 0

    def flush(self, deadline_s: float) -> bool:
        """Block until everything given to `publish` is visible, for shutdown and evict saves.

        Args:
            deadline_s: on the `time.monotonic` clock.
        Returns:
            Whether all of it was confirmed in time.
        """
        return True

    @property
    def connected(self) -> bool:
        """Whether the daemon has answered lately."""
        return False

    def counters(self) -> dict[str, int | float]:
        """A snapshot of the client's counters, by name."""
        return {}

    def close(self, deadline_s: float) -> None:
        """Say goodbye to the daemon, end the I/O thread, unmap everything. Leases end; unpublished work is dropped."""

    def _deadline(self, timeout_s: float | None, extra_s: float = 0.0) -> float:
        return time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s) + extra_s


def cache_endpoint(run_dir: Path) -> str:
    """Where the cache daemon of the host at `run_dir` listens."""
    return f"ipc://{run_dir / 'cache.sock'}"
