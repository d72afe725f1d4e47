"""The daemon's one loop: reads the socket, asks the catalog, carries its actions out, answers. The only writer of every table.

Nothing here waits: files are unlinked and renamed in the loop (microseconds), bytes are moved by background threads, and messages
that cannot be sent are dropped (the peer's own deadline heals that).
"""

import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from cache_daemon.actions import Action, Carry, Check, Damaged, ForgetMapping, Move, Salvage, Unlink
from cache_daemon.admin import Admin
from cache_daemon.background import Background
from cache_daemon.catalog import Catalog
from cache_daemon.dispatch import Dispatch, Wait
from cache_daemon.peers import CHECK_INTERVAL_S, Peer, PeerTable
from cache_daemon.recovery import RecoveryReport, recover, salvage
from cache_daemon.removing import remove
from cache_daemon.segment_files import FoundFile, inode_of_good_file, read_segment_file
from cache_daemon.tiers.directory import TierDirectory
from cache_daemon.writebehind import Arrived, NotArrived, carry
from erllama_host.errors import ErllamaError, InvalidRequest, ProtocolMismatch
from erllama_host.observability import Log
from erllama_host.protocol import cache as m
from erllama_host.protocol.calls import Ok
from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_body,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.protocol.inference import ErrorBody
from erllama_host.transport.sockets import receive, send
from erllama_host.transport.wakeup import Wakeup

MESSAGES_PER_ROUND = 200
LIMITS_INTERVAL_S = 5.0
"""How often the room on the tiers' filesystems is looked at."""
MIRROR_INTERVAL_S = 30.0
MIRROR_BATCH = 2000
"""File times set per interval: about 4 ms."""
POLL_MS = 500


@dataclass(slots=True)
class _Waiting:
    routing: bytes
    envelope: Envelope
    wait: Wait


class CacheService:
    """Serves one socket until it is stopped."""

    def __init__(
        self,
        catalog: Catalog,
        tiers: list[TierDirectory],
        socket: zmq.Socket[bytes],
        log: Log,
        *,
        incarnation: str,
    ) -> None:
        """
        Args:
            socket: a bound ROUTER.
            incarnation: of this daemon.
        """
        self.catalog = catalog
        self.report = RecoveryReport()
        self._tiers = tiers
        self._socket = socket
        self._log = log
        self._incarnation = incarnation
        self._wakeup = Wakeup()
        self._carrier = Background("write-behind", self._wakeup)
        self._verifier = Background("verify", self._wakeup)
        self._peers = PeerTable()
        self._dispatch = Dispatch(catalog)
        self._admin = Admin(catalog, self._peers, self.report, self._verifier)
        self._waiting: list[_Waiting] = []
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._wakeup.fd, zmq.POLLIN)
        catalog.recovering = True  # from before the first message
        gc.disable()  # until recovery is done
        self._recovery: Iterator[None] | None = recover(catalog, tiers, self.report)
        self._stop_by_s: float | None = None
        self._next_limits_s = self._next_mirror_s = self._next_check_s = 0.0

    def stop(self, grace_s: float) -> None:
        """Leave when no worker is registered any more, at the latest after `grace_s`. May be called by a signal handler."""
        if self._stop_by_s is None:
            self._stop_by_s = time.monotonic() + grace_s
        self._wakeup.set()

    def run(self) -> None:
        """Serve until stopped; then finish what is being carried to disk."""
        self._log.info("serving", tiers={t.spec.name: t.spec.path for t in self._tiers})
        while not self._may_leave():
            self._round()
        self._log.info("leaving", registered=len(self._peers), carrying=self._carrier.num_pending)
        self._carrier.stop()
        self._carrier.collect()
        self._carry_out()
        self._verifier.stop()
        self._wakeup.close()

    def _may_leave(self) -> bool:
        if self._stop_by_s is None:
            return False
        return not len(self._peers) or time.monotonic() >= self._stop_by_s

    def _round(self) -> None:
        events = dict(self._poller.poll(self._timeout_ms()))
        now = time.monotonic()
        if self._wakeup.fd in events:
            self._wakeup.clear()
            self._carrier.collect()
            self._verifier.collect()
        for peer in self._peers.all():
            if peer.pidfd in events:
                self._worker_gone(peer, now, "died")
        self._read(now)
        self._timers(now)
        if self._recovery is not None:
            self._recover_slice()
        self._carry_out()
        self._retry(now)

    def _timeout_ms(self) -> int:
        if self._recovery is not None:
            return 0
        due = [time.monotonic() + POLL_MS / 1000]
        due += [waiting.wait.deadline_s for waiting in self._waiting]
        if (expiry := self.catalog.next_expiry()) is not None:
            due.append(expiry)
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1)

    def _recover_slice(self) -> None:
        assert self._recovery is not None
        if next(self._recovery, "done") == "done":
            self._recovery = None
            # A collection that walks a hundred thousand entries would hold up the loop for 0.3 s; none of them is garbage.
            gc.freeze()
            gc.enable()
            report = self.report
            self._log.info(
                "recovered",
                adopted=report.num_adopted,
                took_s=round(report.took_s, 3),
                not_adopted=dict(report.num_by_worth),
            )

    # ---- messages ------------------------------------------------------------------------------------------------

    def _read(self, now: float) -> None:
        for _ in range(MESSAGES_PER_ROUND):
            frames = receive(self._socket)
            if frames is None:
                return
            self._handle(frames, now)

    def _handle(self, frames: list[bytes], now: float) -> None:
        if len(frames) != 3:
            self._log.rate_limited("bad_frames", num_frames=len(frames))
            return
        routing, head, body = frames
        try:
            envelope = decode_envelope(head)
        except (InvalidRequest, ProtocolMismatch) as error:
            self._log.rate_limited("bad_envelope", why=error.message)
            self._send(routing, Envelope(PROTOCOL_VERSION, "error", ""), _error(error))
            return
        try:
            answer = self._answer(routing, envelope, body, now)
        except ErllamaError as error:
            self._log.rate_limited("refused_message", kind=envelope.kind, why=error.message)
            answer = _error(error)
        self._carry_out()
        self._deliver(routing, envelope, answer)

    def _answer(self, routing: bytes, envelope: Envelope, frame: bytes, now: float) -> Any:
        kind = m.CACHE_KINDS.get(envelope.kind)
        if kind is None:
            raise InvalidRequest(f"unknown kind {envelope.kind!r}", field="kind")
        body = decode_body(envelope.kind, frame, kind.body)
        if envelope.kind == "cache":
            return self._admin.call(body.op, body.arguments, now, lambda a: self._deliver_late(routing, envelope, a))
        if envelope.kind == "k.ping" and not (envelope.model and self._peers.get(routing) is None):
            return Ok()
        if envelope.kind == "k.hello":
            return self._register(routing, body, now)
        peer = self._peers.get(routing)
        if peer is None:
            self._send(routing, Envelope(PROTOCOL_VERSION, "k.who", envelope.ref), None)
            return None
        if envelope.kind == "k.bye":
            self._worker_gone(peer, now, "left")
            return Ok()
        return self._dispatch.handle(envelope.kind, peer, body, now)

    def _deliver_late(self, routing: bytes, envelope: Envelope, answer: Any) -> None:
        self._carry_out()  # as for any answer: what it tells of has happened
        self._deliver(routing, envelope, answer)

    def _deliver(self, routing: bytes, envelope: Envelope, answer: Any) -> None:
        if isinstance(answer, Wait):
            self._waiting.append(_Waiting(routing, envelope, answer))
        elif answer is not None:
            kind = "error" if isinstance(answer, ErrorBody) else "reply"
            self._send(routing, Envelope(PROTOCOL_VERSION, kind, envelope.ref, envelope.model), answer)

    def _send(self, routing: bytes, envelope: Envelope, body: Any) -> None:
        if not send(self._socket, [routing, encode_envelope(envelope), encode_body(body)]):
            self.catalog.holdings.tally.count("replies_dropped")

    def _retry(self, now: float) -> None:
        """Answer what waited, if its time has come."""
        still: list[_Waiting] = []
        for waiting in self._waiting:
            wait = waiting.wait
            answer = wait.give_up(now) if now >= wait.deadline_s else wait.retry(now)
            self._carry_out()
            if answer is None:
                still.append(waiting)
            else:
                self._deliver(waiting.routing, waiting.envelope, answer)
        self._waiting = still

    # ---- workers -------------------------------------------------------------------------------------------------

    def _register(self, routing: bytes, hello: m.WorkerRegister, now: float) -> Any:
        own = self.catalog.settings.block_tokens
        if hello.block_tokens != own:
            self._log.rate_limited(
                "worker_refused", model=hello.model_id, its_block_tokens=hello.block_tokens, own_block_tokens=own
            )
            why = (
                f"the cache daemon has blocks of {own} tokens, this worker of {hello.block_tokens}: cache.block_tokens was changed"
                " while the host was up; restart the host"
            )
            return m.Registered(daemon=self._incarnation, refused=why)
        if hello.tier not in self.catalog.holdings.stocks:
            self._log.warning("tier_not_there", model=hello.model_id, tier=hello.tier, instead="ram")
            hello = msgspec.structs.replace(hello, tier="ram")
        peer = self._peers.register(routing, hello)
        if peer is None:
            return None  # it has died since; nobody waits for an answer
        if peer.pidfd is not None:
            self._poller.register(peer.pidfd, zmq.POLLIN)
        for file in hello.mapped:
            self.catalog.holdings.mappings.add(peer.owner, (file.tier, file.inode))
        self.catalog.carrying.aim(peer.namespace, peer.tier)
        self._log.info("worker_registered", model=peer.model_id, worker_pid=peer.pid, tier=peer.tier)
        return m.Registered(daemon=self._incarnation)

    def _worker_gone(self, peer: Peer, now: float, how: str) -> None:
        if peer.pidfd is not None:
            self._poller.unregister(peer.pidfd)
        self._peers.remove(peer)
        self._waiting = [waiting for waiting in self._waiting if waiting.routing != peer.routing]
        self.catalog.worker_gone(peer.owner, now, hold=how != "left")
        # Before the next message: what it had linked is adopted, or somebody might be given room for the same segment.
        self._carry_out()
        self._log.info("worker_gone", model=peer.model_id, worker_pid=peer.pid, how=how)

    # ---- time ----------------------------------------------------------------------------------------------------

    def _timers(self, now: float) -> None:
        expiry = self.catalog.next_expiry()
        if expiry is not None and expiry <= now:
            self.catalog.expire(now)
        if now >= self._next_check_s:
            self._next_check_s = now + CHECK_INTERVAL_S
            for peer in self._peers.dead():
                self._worker_gone(peer, now, "died")
            self.catalog.carrying.retry()
        if self._recovery is None and now >= self._next_limits_s:
            self._next_limits_s = now + LIMITS_INTERVAL_S
            self._look_at_room()
        if now >= self._next_mirror_s:
            self._next_mirror_s = now + MIRROR_INTERVAL_S
            self._mirror_times()

    def _look_at_room(self) -> None:
        for tier in self._tiers:
            ledger = self.catalog.holdings.stocks[tier.spec.name].ledger
            before = ledger.limit_bytes
            try:
                room_bytes = tier.room_bytes(ledger.used_bytes)
            except FileNotFoundError:
                raise  # somebody has removed the directory: the next daemon makes it anew
            except OSError as error:
                self._log.rate_limited("tier_not_looked_at", tier=tier.spec.name, why=error.strerror)
                continue
            self.catalog.holdings.set_limit(tier.spec.name, room_bytes)
            if ledger.limit_bytes < ledger.budget_bytes and before == ledger.budget_bytes:
                self._log.warning(
                    "tier_is_smaller_than_its_budget",
                    tier=tier.spec.name,
                    budget_bytes=ledger.budget_bytes,
                    limit_bytes=ledger.limit_bytes,
                )

    def _mirror_times(self) -> None:
        """Recency survives a restart in the files' times."""
        for _ in range(min(MIRROR_BATCH, len(self.catalog.holdings.touched))):
            identity = self.catalog.holdings.touched.pop()
            entry = self.catalog.holdings.entries.get(identity)
            for tier in entry.copies if entry is not None else ():
                assert entry is not None
                try:
                    os.utime(self.catalog.holdings.path_of(identity, tier), (entry.last_used_s, entry.last_used_s))
                except OSError as error:  # gone, or the disk has become read-only
                    self._log.rate_limited("segment_file_not_touched", tier=tier, why=error.strerror)

    # ---- actions -------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        while actions := self.catalog.take_actions():
            for action in actions:
                self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Unlink(path):
                if (why := remove(path)) is not None:
                    self._log.rate_limited("file_not_removed", path=path, why=why)
            case Move(source, target):
                self._move(source, target)
            case Salvage():
                self.catalog.holdings.tally.count("salvaged" if salvage(self.catalog, action) else "reservations_freed")
            case Carry():
                self._carrier.submit(lambda: carry(action), lambda result: self._carried(action, result))
            case Check():
                self._check(action)
            case Damaged(path):
                self._log.warning("segment_damaged", path=path)
            case ForgetMapping(owner, tier, inode):
                peer = self._peers.of_owner(owner)
                if peer is not None:
                    body = m.Forget(files=[m.FileId(tier, inode)])
                    self._send(peer.routing, Envelope(PROTOCOL_VERSION, "k.forget", ""), body)

    def _check(self, action: Check) -> None:
        if action.payload:
            self._verifier.submit(
                lambda: inode_of_good_file(action.path), lambda inode: self.catalog.looked_at(action, inode)
            )
        else:
            found = read_segment_file(action.path, Path(action.path).name)
            self.catalog.looked_at(action, found.inode if isinstance(found, FoundFile) else None)

    def _move(self, source: str, target: str) -> None:
        try:
            Path(source).rename(target)
        except OSError as error:
            # Mostly because somebody emptied the directory. Whoever gets this file finds nothing, and gives it back.
            self._log.rate_limited("file_not_recycled", path=source, why=error.strerror)

    def _carried(self, action: Carry, result: Arrived | NotArrived) -> None:
        if isinstance(result, Arrived):
            self.catalog.carrying.carried(action, result.inode, result.generation)
        else:
            self._log.rate_limited("write_behind_failed", tier=action.tier, why=result.why)
            self.catalog.carrying.carry_failed(action, no_space=result.no_space)


def _error(error: ErllamaError) -> ErrorBody:
    return ErrorBody(code=error.code, message=error.message, retryable=error.retryable, details=error.details)
