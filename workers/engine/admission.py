"""From the queue into the ticks: a slot, a sampler, and all KV of the row that can be had without computing. Engine thread only.

Order of sources, cheapest first: a live sequence (metadata copy, also of a busy one); another request that is just computing the
same prefix (wait for it); the store (about 1 ms per 1 000 tokens); what is left is prefilled.
"""

import time

from erllama_host.errors import ErllamaError
from erllama_host.kv.tokens import common_prefix_len
from workers.cells import Match
from workers.commands import Admitted
from workers.engine.answers import Answers
from workers.engine.core import Core
from workers.engine.requests import Requests
from workers.scheduler import urgency
from workers.sequence import Phase, Request, has_penalties, penalty_window

GROWTH_CELLS = 32
"""Cells kept free per running request at admission, so that a newcomer does not at once preempt somebody."""
WORTH_WAITING_TOKENS = 32
"""Waiting for another request's prefill must spare at least so many tokens."""
WORD_GETS_OUT_S = 0.02
"""A message to the controller takes under a millisecond, on a busy machine some."""
_PREFIX_PHASES = frozenset({Phase.LOOKUP, Phase.RESTORING, Phase.PREFILL})


class Admission:
    """See the module docstring."""

    def __init__(self, core: Core, requests: Requests, answers: Answers) -> None:
        self._core = core
        self._requests = requests
        self._answers = answers

    def advance(self, now: float) -> bool:
        """Admit what fits, and bring admitted requests on towards computing. Returns whether anything happened."""
        moved = False
        while (request := self._next(now)) is not None:
            self._admit(request, now)
            moved = True
        if moved and self._core.running:
            self._core.bound_live_cache()  # before cells are filled again: the lower they lie, the cheaper every row is
        for request in list(self._core.running):
            if request.phase is Phase.WAITING:
                moved |= self._stop_waiting(request, now)
            if request.phase in (Phase.LOOKUP, Phase.RESTORING):
                moved |= self._restore(request, now)
        return moved

    # --- who is next --------------------------------------------------------------------------------------------------

    def _next(self, now: float) -> Request | None:
        """The most urgent queued request, if it can start now; nobody overtakes it because it is large."""
        core = self._core
        if not core.queue or len(core.running) >= core.backend.limits.num_slots:
            return None
        request = min(core.queue, key=lambda one: urgency(one.submit.priority, one.submit.arrived_at, now))
        if core.running:
            if request.submit.alone or any(one.submit.alone for one in core.running):
                return None
            if not self._fits(request):
                return None
        return request

    def _fits(self, request: Request) -> bool:
        """Whether the row, less what it may share, fits beside what runs; live cache would be let go for it."""
        core, cells = self._core, self._core.pool.cells
        busy = cells.occupied(live for live in cells if live.owner is not None) if core.backend.info.has_cells else 0
        promised = sum(len(one.row) - one.num_kv + GROWTH_CELLS for one in core.running)
        shared = 0
        if request.submit.adapters is None:
            packed = request.packed()
            shared = max((common_prefix_len(one.packed(), packed) for one in core.running), default=0)
        return busy + promised + len(request.row) - shared + GROWTH_CELLS <= cells.num_cells or (
            not core.backend.info.has_cells
        )

    # --- a slot -------------------------------------------------------------------------------------------------------

    def _admit(self, request: Request, now: float) -> None:
        core = self._core
        core.queue.remove(request)
        core.running.append(request)
        request.enter(Phase.WAITING)
        try:
            self._equip(request, now)
        except ErllamaError as error:
            self._requests.fail(request, error)
            return
        ended = self._ended_before(request)
        if ended is not None:
            self._requests.finish(request, ended)
            return
        self._find_kv(request, now)

    def _equip(self, request: Request, now: float) -> None:
        """Sampler, text filters, adapter snapshot; a preempted request has them already.

        Raises:
            ErllamaError: an adapter is not there, or the sampler cannot be made.
        """
        if request.preempted:
            return
        core, submit = self._core, request.submit
        request.uses = core.adapters.snapshot(submit.adapters)
        request.times.admitted_at = now
        if request.draft_from is not None:
            return
        request.sampler = core.backend.make_sampler(submit.params, submit.seed)
        request.text = core.make_text(core.backend.vocabulary, submit)
        if has_penalties(request):
            request.sampler.prime(penalty_window(request))
        if submit.delivered:
            request.sampler.replay(submit.delivered)
            request.text.push(submit.delivered)  # its client has what comes out
        core.mailbox.report(Admitted(request.ref, request.uses.uses, submit.alone))
        if submit.alone:
            # Two workers died with it, and a third time is held against it only if its client knows that it ran: let the word
            # get out before it can end this process, too. Nobody runs beside it who would have to wait.
            core.mailbox.announce()
            time.sleep(WORD_GETS_OUT_S)

    @staticmethod
    def _ended_before(request: Request) -> str | None:
        """Why a resumed answer was complete already; its worker died before it could say so."""
        if not request.submit.delivered or request.text is None:
            return None
        if request.text.stop_found:
            return "stop_string"
        return "length" if len(request.generated) >= request.submit.max_tokens else None

    # --- KV -----------------------------------------------------------------------------------------------------------

    def _find_kv(self, request: Request, now: float) -> None:
        """Begin with what is live; go on to the store for more, or straight to computing."""
        core = self._core
        assert request.uses is not None
        space = core.space(request.uses)
        packed = request.packed()
        match = core.pool.cells.best_match(packed, space, request.most_reusable)
        if self._wait_for_twin(request, packed, match.length if match else 0):
            return
        if match is not None and match.length < min(len(match.source.tokens), request.most_reusable):
            request.tally.diverged_at = match.length
        request.live = core.pool.take(match, request.ref, request.submit.session_id, now) if match is not None else None
        if request.live is None:
            request.live = core.pool.open(space, request.ref, now)
        request.tally.live_tokens = request.num_kv
        if core.kv.begin_lookup(request, packed):
            request.enter(Phase.LOOKUP)
        else:
            self._start_computing(request, now)

    def _wait_for_twin(self, request: Request, packed: bytes, have: int) -> bool:
        """Wait for a request that is about to compute a longer common prefix than is there now."""
        if not self._core.pool.can_share:
            return False
        for other in self._core.running:
            if other is request or other.phase not in _PREFIX_PHASES or other.uses != request.uses:
                continue
            common = min(common_prefix_len(other.packed(), packed), request.most_reusable)
            if common < max(have, other.num_kv) + 1 or common < have + WORTH_WAITING_TOKENS:
                continue
            if not self._core.backend.info.can_truncate and other.num_kv < common < len(other.row):
                other.cuts.append(common)  # it can be shared at its very end only, so it must stop there once
            request.waits_for, request.waits_until_len = other, common
            return True
        return False

    def _stop_waiting(self, request: Request, now: float) -> bool:
        """Go on once the other request has computed the common prefix, or does not compute it any more."""
        other = request.waits_for
        assert other is not None
        if other.phase in _PREFIX_PHASES and other.num_kv < request.waits_until_len:
            return False
        request.waits_for = None
        self._find_kv(request, now)
        return True

    def _restore(self, request: Request, now: float) -> bool:
        """Poll the lookup, restore the next pieces; start computing when that is done."""
        core = self._core
        if request.phase is Phase.LOOKUP:
            if not core.kv.lookup_done(request):
                return False
            request.enter(Phase.RESTORING)
        if core.kv.restore_some(request, streaming=core.num_streaming > 0):
            self._start_computing(request, now)
        return True

    def _start_computing(self, request: Request, now: float) -> None:
        """Everything that can be had is there; make sure that a row is left to compute, unless stored logits do."""
        core = self._core
        if request.num_kv == len(request.row) and request.draft_from is None:
            if self._nothing_to_sample(request):
                request.enter(Phase.PREFILL)
                self._requests.finish(request, "prefill")
                return
            try:
                token = core.kv.sample_stored(request)
            except ErllamaError as error:  # a grammar that leads nowhere
                self._requests.fail(request, error)
                return
            if token is not None:
                self._first_token(request, token)
                return
            self._leave_a_row(request, now)
        core.kv.end_lookup(request)
        request.enter(Phase.PREFILL)

    @staticmethod
    def _nothing_to_sample(request: Request) -> bool:
        return len(request.generated) >= request.submit.max_tokens

    def _first_token(self, request: Request, token: int) -> None:
        logits = self._core.kv.stored_logits(request) if request.submit.params.logprobs is not None else None
        reason = self._answers.accept(request, token, logits, self._core.clock())
        self._core.kv.end_lookup(request)
        if reason is not None:
            self._requests.finish(request, reason)

    def _leave_a_row(self, request: Request, now: float) -> None:
        """No logits for a row that is all there: drop its last cell, or, where nothing can be cut, take a shorter match."""
        core, live = self._core, request.live
        assert live is not None and request.uses is not None
        end = len(request.row) - 1
        if core.pool.truncate(live, end):
            self._uncount(request, end)
            return
        core.pool.rest(live, now)
        space = core.space(request.uses)
        match: Match | None = core.pool.cells.best_match(request.packed(), space, end)
        request.live = core.pool.take(match, request.ref, request.submit.session_id, now) if match is not None else None
        if request.live is None:
            request.live = core.pool.open(space, request.ref, now)
        request.tally.live_tokens, request.tally.tier_tokens = request.num_kv, {}

    @staticmethod
    def _uncount(request: Request, end: int) -> None:
        """One reused token less: the last source that gave one."""
        tally = request.tally
        for tier in reversed(list(tally.tier_tokens)):
            if tally.tier_tokens[tier]:
                tally.tier_tokens[tier] -= 1
                return
        tally.live_tokens = min(tally.live_tokens, end)
