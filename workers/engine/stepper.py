"""One decode: plan it, make room for it, compute it, hand out what it gave. Engine thread only.

Cells: our own count is exact, so room is made before the call; if the library still finds none (it may see it differently with a
sliding window), one more sequence is let go at a time and the call repeated. Live cache goes first, then the running request
that is least urgent is preempted; one that is alone and does not fit ends. So every round frees something or ends something.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from erllama_host.errors import ContextOverflow, ErllamaError
from workers.adapters import AdapterSet
from workers.backend.values import DecodeStatus, Rows
from workers.engine.answers import Answers
from workers.engine.batch import Batch
from workers.engine.core import Core
from workers.engine.drafts import Drafts
from workers.engine.requests import Requests
from workers.scheduler import Candidate, Limits, Rotation, enough_rows, gathering_s, plan_rows, prefill_rows
from workers.sequence import Phase, Request

_ALMOST_READY = frozenset({Phase.LOOKUP, Phase.RESTORING})


@dataclass(slots=True)
class _Part:
    """One request's rows in a decode: `num_rows` from row `first` on, the last `num_outputs` with logits."""

    request: Request
    first: int
    num_rows: int
    num_outputs: int
    tokens: "array[int]"
    drafts: list[int]


@dataclass(slots=True)
class StepInfo:
    """What is being computed, for the snapshot: published before the decode so that a hang is seen."""

    num_prefill: int = 0
    num_decode: int = 0


class Stepper:
    """See the module docstring."""

    def __init__(self, core: Core, requests: Requests, answers: Answers) -> None:
        self._core = core
        self._requests = requests
        self._answers = answers
        self._batch = Batch(core.backend.limits.max_rows)
        self._rotation: Rotation[AdapterSet] = Rotation()
        self._drafts = Drafts(core)
        self._decoding: list[_Part] = []
        self._gathers_since: float | None = None
        self.gathers_until: float | None = None
        """Until when a step is put off; None if none is."""
        self.before_decode: Callable[[StepInfo], None] = lambda _info: None
        """Called right before each decode."""

    def step(self) -> bool:
        """Compute once. False if no request has anything to compute, or a step is put off for a moment."""
        if self._gathers():
            return False
        parts = self._next_tokens() or self._plan_that_fits()
        if not parts:
            return False
        core = self._core
        info = StepInfo(
            num_prefill=sum(part.num_rows for part in parts if part.request.phase is Phase.PREFILL),
            num_decode=sum(part.request.phase is Phase.DECODE for part in parts),
        )
        self._decoding = parts if info.num_decode == len(parts) and not self._drafts.are_on else []
        if info.num_prefill:
            self._answers.flush_all()
            core.mailbox.announce()
        core.bound_live_cache()
        uses = parts[0].request.uses
        assert uses is not None
        core.adapters.apply(uses)
        self.before_decode(info)
        started = core.clock()
        status = core.backend.decode(self._fill(parts))
        now = core.clock()
        if status is DecodeStatus.OK:
            core.rates.note(info.num_prefill, info.num_decode, now - started)
            self._hand_out(parts, now - started, now)
        elif status is DecodeStatus.NO_SPACE:
            core.counters["decode_no_space"] += 1
            self._free_something(parts)
        else:
            self._aborted(parts)
        return True

    # --- planning -----------------------------------------------------------------------------------------------------

    def _gathers(self) -> bool:
        """Whether to wait with a step of prefills alone for others that are about to be ready, and would fit in."""
        core, began, self.gathers_until = self._core, self._gathers_since, None
        self._gathers_since = None
        if not any(request.phase in _ALMOST_READY for request in core.running) or core.num_streaming:
            return False
        num_rows = sum(request.rows_left for request in core.running if request.phase is Phase.PREFILL)
        if not 0 < num_rows < enough_rows(core.backend.limits.max_rows, core.rates):
            return False
        now = core.clock()
        began = now if began is None else began
        until = began + gathering_s(num_rows, core.rates)
        if now >= until:
            return False
        self._gathers_since, self.gathers_until = began, until
        return True

    def _next_tokens(self) -> list[_Part] | None:
        """The parts of the last step, each with the token sampled since; None unless that is what a plan would come to.

        It is where that step was nothing but decoding, all who run took part, and all go on. Most steps are like that, and
        planning is a fifth of their book-keeping.
        """
        parts, core = self._decoding, self._core
        if not parts or len(parts) != len(core.running):
            return None
        if core.backend.info.has_cells and core.pool.cells.free < len(parts):
            return None
        uses = parts[0].request.uses
        for part in parts:
            request = part.request
            if part.num_rows != 1 or request.phase is not Phase.DECODE or request.rows_left != 1:
                return None
            if request.uses != uses or not self._is_ready(request):
                return None
            part.tokens = request.row[-1:]
        return parts

    def _plan_that_fits(self) -> list[_Part]:
        """The parts of the next decode, with cells for all of them; preempts where live cache is not enough."""
        pool, counts = self._core.pool, self._core.backend.info.has_cells
        while True:
            parts = self._plan()
            needed = sum(part.num_rows for part in parts)
            if not parts or not counts or pool.cells.free >= needed or pool.make_room(needed):
                return parts
            self._give_up_one(parts)

    def _plan(self) -> list[_Part]:
        core = self._core
        ready = [request for request in core.running if self._is_ready(request)]
        if not ready:
            return []
        if len({request.uses for request in ready}) > 1:
            turn = self._rotation.pick(request.uses for request in ready if request.uses is not None)
            ready = [request for request in ready if request.uses == turn]
        ready.sort(key=lambda request: -request.submit.priority)  # stable: then in order of admission
        drafts = self._drafts.propose(ready)
        candidates = [self._candidate(request, len(drafts.get(request.ref, ()))) for request in ready]
        beside = sum(candidate.rows_left for candidate in candidates if not candidate.is_prefill)
        limits = core.backend.limits
        budget = prefill_rows(limits.max_rows, beside, core.rates)
        enough = enough_rows(limits.max_rows, core.rates)
        shares = plan_rows(candidates, Limits(limits.max_rows, limits.max_outputs, budget, enough))
        parts, first = [], 0
        for share in shares:
            request = ready[share.index]
            have = request.num_kv
            tokens = request.row[have : have + share.num_rows]
            drafted = (
                drafts.get(request.ref, [])[: share.num_rows - 1] if not candidates[share.index].is_prefill else []
            )
            tokens.extend(drafted)
            parts.append(_Part(request, first, share.num_rows, share.num_outputs, tokens, drafted))
            first += share.num_rows
        return parts

    def _is_ready(self, request: Request) -> bool:
        if request.phase is Phase.DECODE:
            return not request.held and not self._core.kv.paused(request)
        return request.phase is Phase.PREFILL and not self._core.kv.paused(request)

    @staticmethod
    def _candidate(request: Request, num_drafts: int) -> Candidate:
        if request.phase is Phase.DECODE and request.rows_left == 1:
            return Candidate(1 + num_drafts, 1 + num_drafts, is_prefill=False)
        rows = request.rows_left
        return Candidate(rows, request.logits_wanted(rows), is_prefill=True)

    def _fill(self, parts: list[_Part]) -> Rows:
        batch = self._batch
        batch.clear()
        for part in parts:
            live = part.request.live
            assert live is not None
            if part.num_rows == 1 and part.num_outputs:
                batch.add_one(live.seq, part.tokens[0], len(live.tokens))
            else:
                batch.add_run(live.seq, part.tokens, len(live.tokens), part.num_outputs)
        return batch.rows()

    # --- what a decode gave -------------------------------------------------------------------------------------------

    def _hand_out(self, parts: list[_Part], took_s: float, now: float) -> None:
        core = self._core
        for part in parts:
            request = part.request
            assert request.live is not None
            if not part.drafts:  # how many of these stay, sampling tells
                core.pool.grew(request.live, part.tokens)
            if request.phase is Phase.PREFILL:
                request.times.prefill_s += took_s
                request.prefilled_tokens += part.num_rows
                core.counters["prefill_tokens"] += part.num_rows
        for part in parts:  # only now: a finished request's cells may go, and its neighbours' rows are still to be read
            if part.num_outputs:
                self._choose(part, now)
            if part.request.live is not None:
                core.kv.computed(part.request)

    def _choose(self, part: _Part, now: float) -> None:
        request, core = part.request, self._core
        last = part.first + part.num_rows - 1
        if request.draft_from is not None:
            for row in range(last - part.num_outputs + 1, last + 1):
                request.choices.append(int(core.backend.logits(row).argmax()))
            return
        if request.phase is Phase.PREFILL:
            core.kv.prompt_computed(request, core.backend.logits(last))
            if len(request.generated) >= request.submit.max_tokens:
                self._requests.finish(request, "prefill")
                return
        self._sample(part, now)

    def _sample(self, part: _Part, now: float) -> None:
        """Sample from each output row as long as what was sampled is what the next row was computed with."""
        request, core = part.request, self._core
        sampler = request.sampler
        assert sampler is not None and request.live is not None
        first = part.first + part.num_rows - part.num_outputs
        wants_logits = request.submit.params.logprobs is not None
        reason: str | None = None
        failure: ErllamaError | None = None
        used = 0
        for row in range(first, first + part.num_outputs):
            try:
                token = sampler.sample(row)
            except ErllamaError as error:  # a grammar that leads nowhere
                failure = error
                break
            used += 1
            reason = self._answers.accept(request, token, core.backend.logits(row) if wants_logits else None, now)
            if reason is not None or used > len(part.drafts) or token != part.drafts[used - 1]:
                break
        if part.drafts:
            self._drafts.judge(request, len(part.drafts), max(0, used - 1))
            core.pool.kept(request.live, part.tokens, max(1, used))
        if failure is not None:
            self._requests.fail(request, failure)
        elif reason is not None:
            self._requests.finish(request, reason)

    # --- when it does not fit -----------------------------------------------------------------------------------------

    def _free_something(self, parts: list[_Part]) -> None:
        """The library found no cells although we counted some: let one more go."""
        if not self._core.pool.drop_one():
            self._give_up_one(parts)

    def _give_up_one(self, parts: list[_Part]) -> None:
        """Preempt the least urgent request with cells; the only one left ends instead."""
        holders = [one for one in self._core.running if one.live is not None and one.live.tokens]
        keep = parts[0].request
        others = [one for one in holders if one is not keep]
        if others:
            self._requests.preempt(min(reversed(others), key=lambda one: one.submit.priority))
        elif keep.phase is Phase.DECODE or keep.generated:
            self._requests.finish(keep, "context")
        else:
            cells = self._core.backend.limits.num_cells
            self._requests.fail(keep, ContextOverflow(f"the prompt does not fit into the model's {cells} KV cells"))

    def _aborted(self, parts: list[_Part]) -> None:
        """A decode was stopped from outside; rows will be computed again unless their request is gone by then."""
        for part in parts:
            if part.request.live is not None:
                self._core.pool.resync(part.request.live)
        self._core.counters["decodes_aborted"] += 1
