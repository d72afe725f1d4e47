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

Owners: the I/O thread owns the socket, the mappings, leases and reservations; the engine thread owns what a `Pending` has
delivered. Commands go over a queue. An unexpected exception in the I/O thread is raised in the engine's next call: the worker
then crashes.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import zmq

from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.observability import Log
from erllama_host.protocol import cache as m
from erllama_host.transport.shm import FileRef, MappingPool
from erllama_host.transport.wakeup import Wakeup
from workers.kv_jobs import Jobs
from workers.kv_link import DaemonLink
from workers.kv_read import Reader
from workers.kv_types import (
    LookupQuery,
    LookupResult,
    Pending,
    Refused,
    Reservation,
    ReserveOutcome,
    SegmentSpec,
    T,
)
from workers.kv_write import UNPUBLISHED, Held, Writer

DEFAULT_TIMEOUT_S = 0.25
FLUSH_POLL_S = 0.05
BYE_TIMEOUT_S = 1.0


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
        block_tokens: int,
        on_wake: Callable[[], None],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        log: Log | None = None,
    ) -> None:
        """Start the I/O thread; it connects, says hello, and does so again whenever the daemon comes back.

        Args:
            endpoint: `ipc://…/cache.sock`. Nothing needs to listen there yet.
            namespace: root key of the model without adapters (32 bytes).
            tier: name of the tier that this model's rows must reach.
            block_tokens: as configured; the daemon refuses a worker that has another one than itself.
            on_wake: called in the I/O thread whenever a Pending was resolved; must only set a flag or wake a poller.
            timeout_s: default deadline of a call.
        """
        self.model_id = model_id
        self.namespace = namespace
        self._hello = m.WorkerRegister(
            model_id=model_id,
            pid=os.getpid(),
            incarnation=incarnation,
            namespace=namespace,
            tier=tier,
            block_tokens=block_tokens,
        )
        self._log = log or Log("cache-client")
        self._timeout_s = timeout_s
        self._on_wake = on_wake
        self._commands: deque[Callable[[_Io], None]] = deque()
        self._counters: Counter[str] = Counter()
        self._publishing: Counter[bytes] = Counter()
        self._publish_lock = threading.Condition()
        self._wakeup = Wakeup()
        self._failure: BaseException | None = None
        self._connected = False
        self._refused = ""
        self._stop_by_s: float | None = None
        self._is_closed = False
        io = _Io(endpoint, self._hello, self._log, self._counters, self._finished, self._wakeup)
        self._thread = threading.Thread(target=self._run, args=(io,), name="kv-io", daemon=True)
        self._thread.start()

    # ---- readers -------------------------------------------------------------------------------------------------

    def lookup(self, query: LookupQuery, timeout_s: float | None = None) -> Pending[LookupResult]:
        """Ask for the longest stored prefix of a prompt; everything found is leased in one message.

        `query.wait_ms` is added to the deadline. A late answer is released by the store itself.
        """
        pending = self._pending(
            timeout_s, lambda: LookupResult(miss_reason=MissReason.DAEMON_AWAY), query.wait_ms / 1000
        )
        started_s = time.monotonic()
        self._post(lambda io: io.reader.lookup(query, pending, started_s))
        return pending

    def release(self, result: LookupResult) -> None:
        """End the lease of a lookup's answer; its addresses must not be read any more. Harmless without a lease."""
        lease = result.lease
        if lease is not None:
            result.lease = None
            self._post(lambda io: io.ended_leases.append(lease))

    # ---- writers -------------------------------------------------------------------------------------------------

    def reserve(self, specs: Sequence[SegmentSpec], timeout_s: float | None = None) -> Pending[list[ReserveOutcome]]:
        """Ask for room for segments, parents before children; the result has one outcome per spec, in order.

        Regions of new files are allocated and touched before they are handed out, which takes about 0.5 ms per MB.
        """
        wanted = [(spec.meta.key, spec.meta.kind) for spec in specs]
        pending: Pending[list[ReserveOutcome]] = self._pending(
            timeout_s, lambda: [Refused(key, kind, Refusal.DAEMON_AWAY) for key, kind in wanted]
        )
        self._post(lambda io: io.reserve(specs, pending))
        return pending

    def publish(self, reservation: Reservation, payload_bytes: int) -> None:
        """Publish a packed segment, asynchronously and in order: checksum, header, link, announce.

        Args:
            payload_bytes: what was really packed, at most `reservation.capacity_bytes`.
        The region belongs to the store from here on. `pending_count` counts it until the daemon has answered.
        """
        assert isinstance(reservation, Held)
        assert 0 < payload_bytes <= reservation.capacity_bytes
        with self._publish_lock:
            self._publishing[reservation.meta.key] += 1
        self._post(lambda io: io.writer.publish(reservation, payload_bytes))

    def abort(self, reservation: Reservation) -> None:
        """Give a reservation back unused (packing failed, the request went away)."""
        assert isinstance(reservation, Held)
        self._post(lambda io: io.writer.abort([reservation]))

    def pending_count(self) -> int:
        """Segments given to `publish` that the daemon has not confirmed yet."""
        with self._publish_lock:
            return self._publishing.total()

    @property
    def num_unpublished(self) -> int:
        """How many segments given to `publish` are not known to be visible: lost with a daemon or a reservation, or unconfirmed.

        When it grows, somebody's row may have a hole in the store; what is there after all costs a question to find out.
        """
        return sum(self._counters[name] for name in UNPUBLISHED)

    def flush(self, deadline_s: float) -> bool:
        """Block until everything given to `publish` is visible or lost, for shutdown and evict saves.

        Args:
            deadline_s: on the `time.monotonic` clock.
        Returns:
            Whether all of it was settled in time.
        """
        with self._publish_lock:
            while self._publishing:
                self._check()
                remaining = deadline_s - time.monotonic()
                if remaining <= 0:
                    return False
                self._publish_lock.wait(min(remaining, FLUSH_POLL_S))
        return True

    # ---- state ---------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the daemon knows this worker and has answered lately."""
        return self._connected

    @property
    def refused(self) -> str:
        """Why the daemon does not take this worker, in words; empty while it does, or is away."""
        return self._refused

    def counters(self) -> dict[str, int | float]:
        """A snapshot of the client's counters, by name."""
        return dict(self._counters)

    def close(self, deadline_s: float) -> None:
        """Say goodbye to the daemon, end the I/O thread, unmap everything. Leases end; unpublished work is dropped.

        Args:
            deadline_s: on the `time.monotonic` clock; bounds the goodbye.
        """
        self._stop_by_s = deadline_s
        if not self._is_closed:
            self._wakeup.set()
        self._thread.join(max(0.0, deadline_s - time.monotonic()) + BYE_TIMEOUT_S)
        if not self._thread.is_alive() and not self._is_closed:
            self._is_closed = True
            self._wakeup.close()
        self._check()

    # ---- inside --------------------------------------------------------------------------------------------------

    def _pending(self, timeout_s: float | None, fallback: Callable[[], T], extra_s: float = 0.0) -> Pending[T]:
        seconds = (self._timeout_s if timeout_s is None else timeout_s) + extra_s
        return Pending(time.monotonic() + seconds, fallback, self._on_wake)

    def _post(self, command: "Callable[[_Io], None]") -> None:
        self._check()
        if not self._is_closed:  # else nobody is there to do it, and every call ends by its deadline
            self._commands.append(command)
            self._wakeup.set()

    def _check(self) -> None:
        if self._failure is not None:
            raise RuntimeError("the cache client's I/O thread has crashed") from self._failure

    def _finished(self, key: bytes) -> None:
        with self._publish_lock:
            self._publishing[key] -= 1
            if not self._publishing[key]:
                del self._publishing[key]
            self._publish_lock.notify_all()
        self._on_wake()

    def _run(self, io: "_Io") -> None:
        try:
            while self._stop_by_s is None:
                io.round(self._commands)
                self._connected, self._refused = io.link.connected, io.link.refused
            self._connected = False
            io.close(self._stop_by_s)
        except BaseException as error:  # noqa: BLE001  # raised in the engine thread by its next call
            self._failure = error
            self._connected = False
            io.link.close()
            self._on_wake()


class _Io:
    """Everything the I/O thread owns."""

    def __init__(
        self,
        endpoint: str,
        hello: m.WorkerRegister,
        log: Log,
        counters: Counter[str],
        finished: Callable[[bytes], None],
        wakeup: Wakeup,
    ) -> None:
        self.pool = MappingPool()
        self.jobs = Jobs()
        self.link = DaemonLink(endpoint, partial(self._register, hello), log)
        self.reader = Reader(self.link, self.pool, self.jobs, counters)
        self.writer = Writer(self.link, self.pool, self.jobs, counters, finished)
        self.link.on_forget = self._forget
        self.link.on_replaced = self._replaced
        self._wakeup = wakeup
        self.ended_leases: deque[int] = deque()
        """Given back to the daemon last in a round: nobody waits for it, and the next request's lookup must not."""
        self._poller = zmq.Poller()
        self._poller.register(self.link.socket, zmq.POLLIN)
        self._poller.register(self.link.monitor, zmq.POLLIN)
        self._poller.register(wakeup.fd, zmq.POLLIN)

    def round(self, commands: "deque[Callable[[_Io], None]]") -> None:
        """One look at everything there is to do."""
        due = self.link.tick(time.monotonic())
        timeout_s = 0.0 if self.jobs or commands else max(0.0, due - time.monotonic())
        events = dict(self._poller.poll(int(timeout_s * 1000) + (1 if timeout_s else 0)))
        if self._wakeup.fd in events:
            self._wakeup.clear()
        if self.link.socket in events or self.link.monitor in events:
            self.link.read()  # first, so that no command takes an answer that lies there for a silence
        while commands:
            commands.popleft()(self)
        self.jobs.run_slice()
        self.writer.check_sealed()
        self._end_leases()

    def reserve(self, specs: Sequence[SegmentSpec], pending: Pending[list[ReserveOutcome]]) -> None:
        """Ask for room; what it may take has been given back before."""
        self._end_leases()
        self.writer.reserve(specs, pending)

    def _end_leases(self) -> None:
        while self.ended_leases:
            self.reader.release(self.ended_leases.popleft())

    def close(self, deadline_s: float) -> None:
        """Leave the daemon; unmap."""
        self.link.bye(min(BYE_TIMEOUT_S, max(0.0, deadline_s - time.monotonic())))
        self.link.close()
        self.pool.forget_idle()

    def _register(self, hello: m.WorkerRegister) -> m.WorkerRegister:
        mapped = [m.FileId(*file) for file in self.pool.in_use()]
        return m.WorkerRegister(
            model_id=hello.model_id,
            pid=hello.pid,
            incarnation=hello.incarnation,
            namespace=hello.namespace,
            tier=hello.tier,
            block_tokens=hello.block_tokens,
            mapped=mapped,
        )

    def _forget(self, body: m.Forget) -> None:
        gone: list[FileRef] = []
        for file in body.files:
            if file.inode < 0:  # an expired reservation whose file the daemon never knew
                self.writer.forget_token(-file.inode)
            elif self.pool.forget((file.tier, file.inode)):
                gone.append((file.tier, file.inode))
        self.reader.tell_forgotten(gone)

    def _replaced(self) -> None:
        """Another daemon: it knows neither our reservations nor which files we keep mapped for later."""
        self.writer.lose_all()
        self.pool.forget_idle()


def cache_endpoint(run_dir: Path) -> str:
    """Where the cache daemon of the host at `run_dir` listens."""
    return f"ipc://{run_dir / 'cache.sock'}"
