"""The life of requests outside of computing: taken in, cancelled, expired, ended, preempted. Engine thread only.

Every request that was taken in ends in exactly one `Finished` or `Failed`, and whatever it held is given back here and nowhere
else: its slot, its sampler, its adapter set, its sequence, its lease.
"""

from erllama_host.errors import ErllamaError, ModelLoading, NotSupported, QueueFull, SessionBusy
from workers.commands import CancelRequest, Failed, Finished, Hold, Submit
from workers.engine.answers import Answers
from workers.engine.core import Core
from workers.sequence import CacheTally, Phase, Request, cache_report, stats

_MIN_RETRY_S = 0.1


class Requests:
    """See the module docstring."""

    def __init__(self, core: Core, answers: Answers) -> None:
        self._core = core
        self._answers = answers
        self._mean_service_s = 0.0

    # --- coming -------------------------------------------------------------------------------------------------------

    def submit(self, submit: Submit) -> None:
        """Queue a request, or refuse it."""
        refusal = self._refusal(submit)
        if refusal is not None:
            self._core.mailbox.report(Failed(submit.ref, refusal))
            return
        self.enqueue(Request(submit))

    def enqueue(self, request: Request) -> None:
        """Queue a request that may be served."""
        core = self._core
        assert request.ref not in core.by_ref, f"{request.ref} was submitted twice"
        core.queue.append(request)
        core.by_ref[request.ref] = request
        core.counters["requests"] += 1

    def _refusal(self, submit: Submit) -> ErllamaError | None:
        core = self._core
        if core.parking is not None:
            return stopping()
        if core.backend.info.is_embedding_model:
            return NotSupported("an embedding model does not generate; use embed")
        # Counted like the service does, which refuses before anything is accepted: requests that come in one tick are all queued.
        if len(core.by_ref) >= core.config.max_queue + core.backend.limits.num_slots:
            retry = max(_MIN_RETRY_S, self._mean_service_s * len(core.queue) / core.backend.limits.num_slots)
            return QueueFull(f"{len(core.queue)} requests are waiting for this model", retry_after_s=round(retry, 2))
        if submit.session_id is not None and self.session_is_busy(submit.session_id):
            return SessionBusy(f"another request of session {submit.session_id!r} is in flight")
        return None

    def session_is_busy(self, session_id: str) -> bool:
        """Whether a request of that session is queued or running."""
        return any(request.submit.session_id == session_id for request in self._core.by_ref.values())

    def hold(self, command: Hold) -> None:
        """Leave a request out of ticks, or take it in again."""
        request = self._core.by_ref.get(command.ref)
        if request is not None:
            request.held = command.held

    # --- going --------------------------------------------------------------------------------------------------------

    def cancel(self, command: CancelRequest) -> None:
        """End a request early, wherever it is."""
        request = self._core.by_ref.get(command.ref)
        if request is not None:
            self.finish(request, "cancelled", command.reason)

    def expire(self, now: float) -> None:
        """End what has passed its deadline."""
        for request in list(self._core.by_ref.values()):
            deadline = request.submit.deadline
            if deadline is not None and now >= deadline:
                self.finish(request, "cancelled", "deadline")

    def end_all(self, reason: str) -> None:
        """End everything that is queued or running."""
        for request in list(self._core.by_ref.values()):
            self.finish(request, "cancelled", reason)

    def end_queued(self, reason: str) -> None:
        """End everything that was not admitted yet."""
        for request in list(self._core.queue):
            self.finish(request, "cancelled", reason)

    def finish(self, request: Request, reason: str, cancel_reason: str | None = None) -> None:
        """End a request without an error. Its row stays as live cache, and its tail is on its way into the store."""
        core, now = self._core, self._core.clock()
        if request.draft_from is not None:
            self.close(request)
            return
        parts = self._answers.finish_text(request)
        finish_len = request.num_kv
        finish_key = core.kv.finish(request) if request.live is not None else None
        core.counters["cancelled" if cancel_reason else "finished"] += 1
        self._count_hit(request)
        self._note_duration(request, now)
        self._release(request, now)
        core.mailbox.report(
            Finished(
                ref=request.ref,
                finish_reason=reason,
                generated=tuple(request.generated),
                parts=parts,
                finish_key=finish_key,
                finish_len=finish_len,
                cache=cache_report(request),
                stats=stats(request, now),
                cancel_reason=cancel_reason,
            )
        )

    def fail(self, request: Request, error: ErllamaError) -> None:
        """End a request with an error."""
        if request.draft_from is not None:
            request.failure = error
            self.close(request)
            return
        self._answers.flush(request)
        self._core.counters[f"errors_{error.code}"] += 1
        self._release(request, self._core.clock())
        self._core.mailbox.report(Failed(request.ref, error))

    def close(self, request: Request) -> None:
        """End a request that nobody hears of (a verification; its call answers): only give back what it held."""
        self._release(request, self._core.clock())

    def preempt(self, request: Request) -> None:
        """Take a request's cells, after a save, and queue it again: it will go on from its row."""
        core = self._core
        self._answers.flush(request)
        core.kv.abandon(request)
        if request.live is not None:
            core.kv.rescue(request.live)
            core.pool.drop(request.live)
            request.live = None
        core.running.remove(request)
        request.enter(Phase.QUEUED)
        request.preempted = True
        request.choices.clear()
        request.tally = CacheTally()
        core.queue.append(request)
        core.counters["preemptions"] += 1

    def _release(self, request: Request, now: float) -> None:
        core = self._core
        core.kv.abandon(request)
        del core.by_ref[request.ref]
        (core.queue if request.phase is Phase.QUEUED else core.running).remove(request)
        request.enter(Phase.DONE)
        if request.sampler is not None:
            request.sampler.close()
        if request.uses is not None:
            core.adapters.release(request.uses)
        self._rest(request, now)

    def _rest(self, request: Request, now: float) -> None:
        """Leave the sequence as live cache; a session's pin moves to it."""
        core, live = self._core, request.live
        request.live = None
        if live is None:
            return
        if not live.tokens or not core.kv.is_usable(live):
            core.pool.drop(live)
            return
        core.pool.rest(live, now)
        session = request.submit.session_id
        if session is not None:
            before = core.pool.cells.in_session(session)
            if before is not None:
                before.session = None
            live.session = session

    def _count_hit(self, request: Request) -> None:
        if request.times.admitted_at is None:
            return
        report = cache_report(request)
        counters = self._core.counters
        self._core.last_cache_hit = report.kind
        counters["misses" if report.kind == "cold" else f"hits_{report.kind}"] += 1
        counters["live_tokens"] += report.live_tokens
        counters["restored_tokens"] += report.read_tokens - report.live_tokens

    def _note_duration(self, request: Request, now: float) -> None:
        if request.times.admitted_at is not None:
            took = now - request.times.admitted_at
            self._mean_service_s = took if not self._mean_service_s else 0.8 * self._mean_service_s + 0.2 * took


def stopping() -> ModelLoading:
    """The refusal of what comes too late."""
    return ModelLoading("the model is being stopped", retry_after_s=1.0)
