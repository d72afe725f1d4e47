"""What each message of a worker does: translates between wire structs and the catalog. No sockets, no files.

Answers are returned, not sent. Two calls may be answered later and then return `Wait`: a lookup whose `parent_key` is just being
written, and a reservation for which room is being made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cache_daemon.catalog import Catalog, Granted, There
from cache_daemon.entries import Identity
from cache_daemon.holdings import Coming
from cache_daemon.peers import Peer
from cache_daemon.prefix_index import Prompt
from cache_daemon.reservations import Reservation
from erllama_host.errors import InvalidRequest
from erllama_host.kv.keys import KEY_BYTES
from erllama_host.kv.reuse import Refusal, Reuse
from erllama_host.kv.segment import SaveReason, SegmentKind, SegmentMeta
from erllama_host.kv.tokens import TOKEN_BYTES, num_tokens
from erllama_host.protocol import cache as m

ROOM_WAIT_S = 0.15
"""How long a reservation waits for workers to unmap files; they answer in a millisecond unless they are busy."""

MAX_WAIT_MS = 10_000


@dataclass(slots=True)
class Wait:
    """An answer that comes later: `retry()` returns it, or None while it is still not time; at the deadline `give_up()` does."""

    deadline_s: float
    retry: Callable[[float], Any | None]
    give_up: Callable[[float], Any]


class Dispatch:
    """Handles the messages of registered workers."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._handlers: dict[str, Callable[[Peer, Any, float], Any]] = {
            "k.lookup": self._lookup,
            "k.release": self._release,
            "k.reserve": self._reserve,
            "k.renew": self._renew,
            "k.announce": self._announce,
            "k.abort": self._abort,
            "k.forgotten": self._forgotten,
        }

    def handle(self, kind: str, peer: Peer, body: Any, now: float) -> Any:
        """The answer (a struct), a `Wait`, or None for kinds without an answer.

        Raises:
            InvalidRequest: a field has an impossible value.
        """
        return self._handlers[kind](peer, body, now)

    # ---- readers -------------------------------------------------------------------------------------------------

    def _lookup(self, peer: Peer, body: m.Lookup, now: float) -> Any:
        prompt = _prompt(body)

        def answer(at: float) -> m.Found:
            granted = self._catalog.lookup(peer.owner, prompt, at, parent_key=body.parent_key, cautious=body.cautious)
            self._catalog.holdings.tally.looked_up(peer.namespace, granted.match.hit_len, num_tokens(body.tokens))
            return self._found(granted)

        key = body.parent_key
        if key is None or not body.wait_ms or not self._catalog.reservations.is_open(key):
            return answer(now)
        deadline = now + min(body.wait_ms, MAX_WAIT_MS) / 1000
        return Wait(deadline, lambda at: None if self._catalog.reservations.is_open(key) else answer(at), answer)

    def _found(self, granted: Granted) -> m.Found:
        match = granted.match
        return m.Found(
            lease=granted.lease,
            hit_len=match.hit_len,
            segments=[self._segment(identity, use_end) for identity, use_end in match.parts],
            logits=self._segment(match.logits, match.hit_len) if match.logits is not None else None,
            miss_reason=granted.miss_reason,
            diverged_at=match.diverged_at,
        )

    def _segment(self, identity: Identity, use_end: int) -> m.FoundSegment:
        copy = self._catalog.holdings.fastest_copy(self._catalog.holdings.entries[identity])
        return m.FoundSegment(
            key=identity[0],
            kind=int(identity[1]),
            use_end=use_end,
            tier=copy.tier,
            path=self._catalog.holdings.path_of(identity, copy.tier),
            inode=copy.inode,
            generation=copy.generation,
            verify=not copy.verified,
        )

    def _release(self, peer: Peer, body: m.Release, _now: float) -> None:
        if body.raced:
            self._catalog.holdings.tally.count("raced", len(body.raced))
        self._catalog.release(
            body.lease,
            peer.owner,
            verified=_identities(body.verified),
            corrupt=_identities(body.corrupt),
            raced=_identities(body.raced),
        )

    # ---- writers -------------------------------------------------------------------------------------------------

    def _reserve(self, peer: Peer, body: m.Reserve, now: float) -> Any:
        wanted = [(_meta(segment, peer.namespace), segment.capacity_bytes) for segment in body.segments]
        outcomes: list[m.Reserved] = []

        def go_on(at: float, *, last_try: bool = False) -> m.ReserveAnswer | None:
            while len(outcomes) < len(wanted):
                meta, capacity_bytes = wanted[len(outcomes)]
                result = self._catalog.reserve(peer.owner, peer.tier, meta, capacity_bytes, at)
                if isinstance(result, Coming):
                    if not last_try:
                        return None
                    result = Refusal.NO_BUDGET
                outcomes.append(_outcome(result))
            return m.ReserveAnswer(outcomes=outcomes)

        return go_on(now) or Wait(now + ROOM_WAIT_S, go_on, lambda at: go_on(at, last_try=True))

    def _renew(self, peer: Peer, body: m.Renew, now: float) -> m.RenewAnswer:
        return m.RenewAnswer(ours=[self._catalog.renew(peer.owner, token, now) for token in body.tokens])

    def _announce(self, peer: Peer, body: m.Announce, now: float) -> m.AnnounceAnswer:
        return m.AnnounceAnswer(
            visible=[
                self._catalog.announce(
                    peer.owner, w.token, w.inode, w.generation, w.payload_bytes, w.file_bytes, now, adopted=w.adopted
                )
                for w in body.written
            ]
        )

    def _abort(self, peer: Peer, body: m.Abort, now: float) -> None:
        if len(body.tokens) != len(body.inodes):
            raise InvalidRequest("k.abort: as many inodes as tokens are needed", field="inodes")
        for token, inode in zip(body.tokens, body.inodes, strict=True):
            self._catalog.abort(peer.owner, token, inode, now, no_space=body.no_space)

    def _forgotten(self, peer: Peer, body: m.Forgotten, _now: float) -> None:
        for file in body.files:
            self._catalog.forgotten(peer.owner, (file.tier, file.inode))


def _prompt(body: m.Lookup) -> Prompt:
    if len(body.block_keys) % KEY_BYTES or len(body.tokens) % TOKEN_BYTES or not body.tokens:
        raise InvalidRequest("k.lookup: keys must be 32 bytes each and tokens 4, at least one", field="tokens")
    keys = [body.block_keys[i : i + KEY_BYTES] for i in range(0, len(body.block_keys), KEY_BYTES)]
    return Prompt(body.root, keys, body.tokens, body.prompt_key, _value(Reuse, body.reuse, "reuse"))


def _meta(wanted: m.WantedSegment, namespace: bytes) -> SegmentMeta:
    sizes_fit = len(wanted.tokens) == (wanted.end - wanted.start) * TOKEN_BYTES
    keys_fit = all(len(key) == KEY_BYTES for key in (wanted.key, wanted.parent, wanted.root))
    if not sizes_fit or not keys_fit or not 0 <= wanted.covers_from <= wanted.start <= wanted.end < 2**32:
        raise InvalidRequest("k.reserve: keys, range and tokens of a segment do not fit together", field="segments")
    if not wanted.capacity_bytes:
        raise InvalidRequest("k.reserve: capacity_bytes must be greater than 0", field="capacity_bytes")
    return SegmentMeta(
        key=wanted.key,
        kind=_value(SegmentKind, wanted.kind, "kind"),
        parent=wanted.parent,
        namespace=namespace,
        root=wanted.root,
        start=wanted.start,
        end=wanted.end,
        tokens=wanted.tokens,
        covers_from=wanted.covers_from,
        block_tokens=wanted.block_tokens,
        cuttable=wanted.cuttable,
        reason=_value(SaveReason, wanted.reason, "reason"),
        reply_start=wanted.reply_start,
    )


def _value(enum: Any, value: object, field: str) -> Any:
    try:
        return enum(value)
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", field=field) from error


def _identities(segments: list[m.SegmentId]) -> list[Identity]:
    return [(s.key, _value(SegmentKind, s.kind, "kind")) for s in segments]


def _outcome(result: Reservation | There | Refusal) -> m.Reserved:
    if isinstance(result, There):
        return m.Reserved(there=True)
    if isinstance(result, Refusal):
        return m.Reserved(refused=result.value)
    return m.Reserved(
        token=result.token,
        tier=result.tier,
        path=result.path,
        inode=result.inode,
        generation=result.generation,
        file_bytes=result.file_bytes,
    )
