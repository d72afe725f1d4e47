"""The engine's side of the KV cache: what is looked up, restored and saved when, and by which policy. Engine thread only.

Saves happen while a request runs (blocks as they complete), at the end of a prompt (logits; a snapshot where state cannot be cut),
at its end (the tail), and synchronously before cells go (rescue, evict, shutdown). A finished row that the store did not take
(daemon away or slow, tier full) is offered again until it does, so that it does not go with the worker. Gates: the model must have
passed its self-check, the policy must be on, rows shorter than `min_tokens` are not worth a file, and prompts outside
`[cold_min_tokens, cold_max_tokens]` are not saved while they are prefilled.
"""

import time

from erllama_host.config.host import CacheConfig
from erllama_host.config.model import ModelConfig
from erllama_host.kv.keys import KeySpace
from erllama_host.kv.reuse import MissReason, Reuse
from erllama_host.kv.segment import SaveReason
from erllama_host.kv.tokens import TOKEN_BYTES
from workers.backend.values import KvMode, Logits
from workers.cells import LiveSequence
from workers.counters import Counters
from workers.kv_keys import Piece, RowKeys
from workers.kv_restore import Restorer, query_for
from workers.kv_saves import FULL_RETRY_S, RETRY_S, Clock, Saver
from workers.kv_store import KvStore
from workers.kv_types import LookupQuery, LookupResult, Pending
from workers.pool import Pool
from workers.sequence import Phase, Request, packed_row

PACKS_STREAMING = 2
PACKS_QUIET = 16
RESCUE_TIMEOUT_S = 0.25
MAX_SNAPSHOTS_PER_PROMPT = 8
"""A snapshot at every block end of a long prompt would cost more than it saves."""
OFFER_S = 2.0
"""How often finished rows that are not stored are looked for. More often would only ask a daemon that is not there yet."""
LOSSES_IN_A_ROW = 3
"""A daemon that dies in the middle of saves is noticed in one to three of them."""
ALMOST_ALL_TOKENS = 8
"""With so few tokens missing, a lookup takes longer than computing them."""


class KvSession:
    """See the module docstring. Without a store (no cache configured) everything is a gated miss."""

    def __init__(
        self, pool: Pool, store: KvStore | None, namespace: bytes, config: ModelConfig, cache: CacheConfig,
        counters: Counters, clock: Clock,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._pool = pool
        self._backend = pool.backend
        self._namespace = namespace
        self._policy = config.policy
        self._cache = cache
        self.store = store
        self._snapshots = self._backend.kv_mode is KvMode.SNAPSHOTS
        self._restorer = Restorer(pool, store, counters) if store is not None else None
        self._saver = Saver(pool, store, counters, clock, snapshots=self._snapshots) if store is not None else None
        # Once its sequence goes on, a block of a moving window cannot be packed any more.
        self._window_moves = self._backend.kv_shape.swa_mode == "window"
        self._pack_at_once = self._snapshots or self._window_moves
        self._rows: dict[str, RowKeys] = {}
        self._next_offer = 0.0
        self._num_unpublished = 0
        self._losses, self._lost_at = 0, 0.0
        pool.set_rescue(self.rescue)

    # --- gates --------------------------------------------------------------------------------------------------------

    def gate(self, num_tokens: int) -> MissReason | None:
        """Why rows of this length have nothing to do with the store; None where they do."""
        if self._backend.kv_mode is KvMode.UNCACHED or self.refused:
            return MissReason.UNCACHED_MODEL
        if self._restorer is None or not self._policy.enabled or num_tokens < self._policy.min_tokens:
            return MissReason.GATED
        return None

    @property
    def refused(self) -> str:
        """Why the cache daemon does not take this model, if so: then it goes without a cache."""
        return self.store.refused if self.store is not None else ""

    def _saves_while_prefilling(self, request: Request) -> bool:
        return self._policy.cold_min_tokens <= request.num_prompt <= self._policy.cold_max_tokens

    # --- reading ------------------------------------------------------------------------------------------------------

    def begin_lookup(self, request: Request, packed: bytes) -> bool:
        """Ask the store for more than is live, where that can pay. False: compute straight away."""
        gate = self.gate(len(request.row))
        if gate is not None:
            request.tally.miss_reason = gate
            return False
        missing = request.most_reusable - request.num_kv
        if missing == 0 and request.draft_from is not None:
            return False
        if 0 < missing <= ALMOST_ALL_TOKENS and self._backend.info.can_truncate:
            request.tally.miss_reason = MissReason.TOO_FEW
            return False
        assert self._restorer is not None and request.live is not None
        keys = self._keys(request, packed)
        self._plan_stops(request, keys)
        parent = request.submit.parent_key
        parent_is_live = parent is not None and request.num_kv > 0 and keys.key(request.num_kv) == parent
        query = query_for(
            request,
            keys.chain,
            packed,
            reuse=Reuse.STATE if self._snapshots else Reuse.CUT,
            resume_wait_ms=self._cache.session_resume_wait_ms,
            parent_is_live=parent_is_live,
        )
        self._restorer.ask(request.ref, query)
        return True

    def lookup_done(self, request: Request) -> bool:
        """Poll the lookup."""
        assert self._restorer is not None
        return self._restorer.done(request)

    def restore_some(self, request: Request, *, streaming: bool) -> bool:
        """Restore for one slice of time; True when the sequence has all it can get."""
        assert self._restorer is not None
        if not self._restorer.restore_some(request, streaming=streaming):
            return False
        if request.tally.miss_reason in (MissReason.RACED, MissReason.CORRUPT):
            self._lost_something(self._clock())  # the store lets go of it; a live sequence may still have it
        return True

    def stored_logits(self, request: Request) -> Logits | None:
        """The stored logits after the request's row, where the lookup found them."""
        return self._restorer.logits(request) if self._restorer is not None else None

    def sample_stored(self, request: Request) -> int | None:
        """The first token of an answer whose whole row is there, from stored logits; None without them."""
        logits = self.stored_logits(request)
        if logits is None or request.sampler is None:
            return None
        return request.sampler.sample_from(logits)

    def end_lookup(self, request: Request) -> None:
        """The request computes by itself from here on: give the lease back."""
        if self._restorer is not None:
            self._restorer.end(request.ref)

    def abandon(self, request: Request) -> None:
        """The request is over, or loses its sequence."""
        self.end_lookup(request)
        self._rows.pop(request.ref, None)

    def is_usable(self, live: LiveSequence) -> bool:
        """Whether a sequence may stay as live cache: not in the middle of a restore of state that is whole or nothing."""
        return not live.incomplete

    def ask_length(self, packed: bytes, space: KeySpace) -> Pending[LookupResult] | None:
        """Ask how much of these tokens is stored; None where nothing can be. `release` the answer."""
        if self.store is None or self.gate(len(packed) // TOKEN_BYTES) is not None:
            return None
        chain = space.chain(self._cache.block_tokens)
        chain.extend(packed)
        reuse = Reuse.STATE if self._snapshots else Reuse.CUT
        return self.store.lookup(
            LookupQuery(
                root=chain.root, block_keys=tuple(chain.block_keys), tokens=packed, prompt_key=chain.key(), reuse=reuse
            )
        )

    def release(self, result: LookupResult) -> None:
        """Give the lease of `ask_length` back."""
        if self.store is not None:
            self.store.release(result)

    # --- saving while a request runs ----------------------------------------------------------------------------------

    def paused(self, request: Request) -> bool:
        """Whether the request must stay out of ticks until its state is taken."""
        live = request.live
        return live is not None and live.saves_open > 0 and self._saver is not None and self._saver.pauses(live)

    def computed(self, request: Request) -> None:
        """The request's sequence has grown: save blocks that became full, and a pinned prefix that is complete."""
        live = request.live
        assert live is not None
        length, block, pin = len(live.tokens), self._cache.block_tokens, request.submit.pin_prefix
        if pin and length >= pin and not request.pinned:
            request.pinned = True
            if self._saver is not None and self.gate(pin) is None:
                self._pin(request, live, pin)
        if length - live.asked_end // block * block >= block and self._may_save(request, live):
            self._save_blocks(request, live)

    def _may_save(self, request: Request, live: LiveSequence) -> bool:
        if self._saver is None or self.gate(len(live.tokens)) is not None or not self._saver.may_ask(live):
            return False
        return request.phase is Phase.DECODE or self._saves_while_prefilling(request)

    def _save_blocks(self, request: Request, live: LiveSequence) -> None:
        assert self._saver is not None
        keys = self._keys(request)
        reason = SaveReason.CONTINUED if request.phase is Phase.DECODE else SaveReason.COLD
        end = keys.floor(len(live.tokens))
        pieces = self._blocks(keys, live, end, reason, request.submit.pin_prefix)
        at_end = end == len(live.tokens)
        if self._snapshots and at_end and (request.phase is Phase.DECODE or end in request.snapshot_at):
            pieces.append(keys.snapshot(end, reason, has_cells=self._backend.info.has_cells))
        live.asked_end = end
        self._saver.begin(live, pieces, request.cache, pauses=self._pack_at_once and at_end)

    def _blocks(self, keys: RowKeys, live: LiveSequence, end: int, reason: SaveReason, pin: int = 0) -> list[Piece]:
        """The blocks up to `end` that were not asked for yet; those within `pin` tokens get pinned."""
        if not self._backend.info.has_cells:
            return []
        step = self._cache.block_tokens
        ends = range(keys.floor(live.asked_end) + step, end + 1, step)
        return [keys.block(stop, SaveReason.PREFIX if stop <= pin else reason) for stop in ends]

    def prompt_computed(self, request: Request, logits: Logits) -> None:
        """The whole row is computed and its logits are at hand: store them, with a snapshot where one is needed."""
        live = request.live
        assert live is not None
        length = len(live.tokens)
        if length != request.num_prompt or not self._may_save(request, live):
            return
        assert self._saver is not None
        keys = self._keys(request)
        pieces = [keys.logits(length, logits.copy())]
        if self._snapshots and live.saved_end < length:
            has_cells = self._backend.info.has_cells
            pieces.insert(0, keys.snapshot(length, SaveReason.COLD, has_cells=has_cells))
        self._saver.begin(live, pieces, request.cache, pauses=self._snapshots)

    def _pin(self, request: Request, live: LiveSequence, pin: int) -> None:
        """Save the row `[0, pin)` as a pinned one; what is stored already gets pinned by asking for it."""
        assert self._saver is not None
        keys, step = self._keys(request), self._cache.block_tokens
        pieces: list[Piece] = []
        if self._backend.info.has_cells:
            pieces = [keys.block(stop, SaveReason.PREFIX) for stop in range(step, pin + 1, step)]
        if self._snapshots:
            if pin == len(live.tokens):
                pieces.append(keys.snapshot(pin, SaveReason.PREFIX, has_cells=self._backend.info.has_cells))
        elif pin % step:
            pieces.append(keys.tail(pin, SaveReason.PREFIX))
        live.asked_end = max(live.asked_end, keys.floor(pin))
        self._saver.begin(live, pieces, request.cache, pauses=self._pack_at_once)

    # --- saving at the end --------------------------------------------------------------------------------------------

    def finish(self, request: Request) -> bytes | None:
        """Begin saving the tail of a request that ends; its `finish_key`, or None where the row is gated."""
        live = request.live
        assert live is not None
        length = len(live.tokens)
        if not length or self.gate(length) is not None or not self.is_usable(live):
            return None
        keys = self._keys(request)
        if live.saved_end < length and self._saver is not None and not live.unsaveable:
            pieces = self._rest(keys, live, SaveReason.FINISH, request.num_prompt)
            live.asked_end = keys.floor(length)
            # The row is at rest. Whoever goes on with it shares it (snapshots), or waits so that its window does not move.
            self._saver.begin(live, pieces, request.cache, pauses=self._window_moves)
        return keys.key(length)

    def _rest(self, keys: RowKeys, live: LiveSequence, reason: SaveReason, reply_start: int | None) -> list[Piece]:
        """All of a sequence that was not asked for yet."""
        length = len(live.tokens)
        floor = keys.floor(length)
        pieces = self._blocks(keys, live, floor, reason)
        if self._snapshots:
            has_cells = self._backend.info.has_cells
            pieces.append(keys.snapshot(length, reason, has_cells=has_cells, reply_start=reply_start))
        elif floor < length:
            pieces.append(keys.tail(length, reason, reply_start))
        return pieces

    def rescue(
        self, live: LiveSequence, reason: SaveReason = SaveReason.EVICT, timeout_s: float = RESCUE_TIMEOUT_S
    ) -> None:
        """Save what a sequence has and the store has not, now: its cells are about to go."""
        if self._saver is None or self.gate(len(live.tokens)) is not None or live.unsaveable:
            return
        if self.store is not None and not self.store.connected:
            return  # a hung daemon must not make every tick that needs cells wait
        deadline = time.monotonic() + timeout_s
        if live.saves_open:
            self._saver.complete(deadline)
        if live.is_saved or live.unsaveable or live.saves_open:
            return
        pieces = self._unsaved(live, reason)
        self._saver.save_now(live, pieces, deadline - time.monotonic())

    def _unsaved(self, live: LiveSequence, reason: SaveReason) -> list[Piece]:
        """All of a sequence that is not stored, whoever computed it."""
        packed = packed_row(live.tokens)
        keys = RowKeys(live.space, self._namespace, self._cache.block_tokens, self._backend.cuttable, packed)
        live.asked_end = min(live.asked_end, keys.floor(min(live.saved_end, live.chain_end)))
        return self._rest(keys, live, reason, None)

    def save_all(self, timeout_s: float, reason: SaveReason) -> tuple[int, bool]:
        """Save everything live and wait until it is published, `timeout_s` at most.

        Returns:
            (tokens that are in the store now, whether that is all there is to save)
        """
        if self._saver is None or self.store is None:
            return 0, True
        deadline = time.monotonic() + timeout_s
        self._saver.complete(deadline)
        lives = [live for live in self._pool.cells if self.gate(len(live.tokens)) is None]
        for live in lives:
            if time.monotonic() < deadline and self.is_usable(live):
                self.rescue(live, reason, deadline - time.monotonic())
        flushed = self.store.flush(deadline)
        return sum(live.saved_end for live in lives), flushed and all(live.is_saved for live in lives)

    # --- every tick ---------------------------------------------------------------------------------------------------

    def advance(self, *, streaming: bool) -> bool:
        """The tick's share of packing and sweeping. Returns whether anything moved."""
        if self._saver is None or self._restorer is None:
            return False
        self._restorer.sweep()
        moved = self._saver.advance(PACKS_STREAMING if streaming else PACKS_QUIET)
        if self._saver.is_busy or self._clock() < self._next_offer:
            return moved
        return self._offer_again(self._saver) or moved

    def _offer_again(self, saver: Saver) -> bool:
        """Begin the save of one finished row that is not stored. The next has its turn when no save is open any more."""
        assert self.store is not None
        now = self._clock()
        if self.store.num_unpublished != self._num_unpublished:
            self._num_unpublished = self.store.num_unpublished
            self._lost_something(now)
        for live in reversed(self._pool.cells.idle()) if self.store.connected else ():
            if live.is_saved or not saver.may_ask(live) or not self.is_usable(live) or self.gate(len(live.tokens)):
                continue
            pieces = self._unsaved(live, SaveReason.FINISH)
            live.asked_end = len(live.tokens) - len(live.tokens) % self._cache.block_tokens
            live.no_save_before = now + RETRY_S  # whatever becomes of it, it does not come round again at once
            saver.begin(live, pieces, None, pauses=self._window_moves)
            return True
        self._next_offer = now + OFFER_S
        return False

    def _lost_something(self, now: float) -> None:
        """Take nothing for stored any more. That costs questions; if it goes on, all is packed again and again: then pause."""
        self._losses = self._losses + 1 if now - self._lost_at < 2 * FULL_RETRY_S else 1
        self._lost_at = now
        for live in self._pool.cells:
            live.distrust()
            if self._losses > LOSSES_IN_A_ROW:
                live.no_save_before = now + FULL_RETRY_S

    @property
    def waiting(self) -> bool:
        """Whether an answer of the store is outstanding, so that the engine must look again soon."""
        if self._saver is None or self._restorer is None:
            return False
        return self._saver.is_busy or self._restorer.waiting

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _keys(self, request: Request, packed: bytes | None = None) -> RowKeys:
        """Keys of the request's row as it is now; extended, not made anew, while the row grows."""
        keys = self._rows.get(request.ref)
        if keys is None:
            assert request.live is not None
            space, block = request.live.space, self._cache.block_tokens
            packed = packed if packed is not None else request.packed()
            keys = RowKeys(space, self._namespace, block, self._backend.cuttable, packed)
            self._rows[request.ref] = keys
        elif keys.chain.num_tokens < len(request.row):
            keys.extend(packed_row(request.row, keys.chain.num_tokens))
        return keys

    def _plan_stops(self, request: Request, keys: RowKeys) -> None:
        """Where the prefill must stop so that state can be taken at its very end."""
        if not self._pack_at_once or not self._saves_while_prefilling(request):
            return
        step, length = self._cache.block_tokens, len(request.row)
        ends = list(range(step, length, step))
        stride = -(-len(ends) // MAX_SNAPSHOTS_PER_PROMPT) if self._snapshots and ends else 1
        request.snapshot_at = set(ends[stride - 1 :: stride]) | set(ends[-1:])
        stops = request.snapshot_at if self._snapshots else set(ends)
        if self._snapshots and 0 < request.submit.pin_prefix < length:
            stops = stops | {request.submit.pin_prefix}
        request.cuts = sorted(stops)
