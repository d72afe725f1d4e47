"""Streams as the service serves them: from an `infer` message to the engine, from the engine's reports to the client.

Service thread only. Slow preparation (grammars, templates, long texts) runs in the background; until its result is back the
stream is `opening`: it can be cancelled, resumed and can expire like any other.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from erllama_host.config.model import ModelConfig
from erllama_host.errors import ErllamaError, InvalidRequest, NotSupported
from erllama_host.kv.tokens import TOKEN_BYTES
from erllama_host.protocol.envelope import Envelope
from erllama_host.protocol.inference import (
    Accepted,
    Cancel,
    ChatRequest,
    Credit,
    Done,
    Infer,
    Resume,
    error_body,
    pack_tokens,
)
from erllama_host.protocol.validate import check_infer
from workers.admission import Pace, check_deaths, limited_by_context, make_submit, text_prompt
from workers.background import Background
from workers.calls import INLINE_BYTES
from workers.commands import Admitted, Failed, Finished, Generated, Submit
from workers.model import LoadedModel
from workers.streams import Effect, Stream, Streams

MAX_GRANT = 1 << 20
CANCEL_REASONS = frozenset({"client", "deadline"})


class ChatPrompts(Protocol):
    """Renders conversations, and remembers what the model has said."""

    def prompt(self, chat: ChatRequest) -> list[int]:
        """Token ids of a conversation. Blocks for up to seconds: background only.

        Raises:
            InvalidRequest: the template refuses the messages. NotSupported: no template, or one that cannot be run.
        """
        ...

    def remember(self, ids: tuple[int, ...]) -> None:
        """Keep a reply, so that it is replayed exactly when it comes back as a message."""
        ...


@dataclass(frozen=True)
class _Running:
    """What the end of a request needs of its beginning."""

    is_chat: bool
    fills_context: bool
    arrived_at: float


class Inference:
    """The streams of one loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        config: ModelConfig,
        incarnation: str,
        chat: ChatPrompts,
        background: Callable[[str], Background],
        carry_out: Callable[[Iterable[Effect]], None],
    ) -> None:
        """
        Args:
            background: the thread for `grammars`, `templates` or `texts`.
            carry_out: sends messages and posts commands.
        """
        self._model = model
        self._incarnation = incarnation
        self._chat = chat
        self._background = background
        self._carry_out = carry_out
        self._streams = Streams(incarnation)
        self._num_slots = model.limits.num_slots
        self._max_active = config.max_queue + self._num_slots
        self._running: dict[str, _Running] = {}
        self._pace = Pace()

    @property
    def num_active(self) -> int:
        """Requests that have not ended."""
        return self._streams.num_active

    # ---- from clients --------------------------------------------------------------------------------------------

    def infer(self, envelope: Envelope, request: Infer, now: float) -> None:
        """Take a request in.

        Raises:
            ErllamaError: it was refused before it became a stream.
        """
        ref, peer = envelope.ref, envelope.peer
        known = self._streams.find(ref) is not None
        if known and not self._streams.resubmitted(ref, peer, request.attempt):  # never run twice
            start = len(request.resume.delivered) // TOKEN_BYTES if request.resume is not None else 0
            self._carry_out(self._streams.resume(ref, peer, start, now))
            return
        check_infer(request)
        check_deaths(request)
        if self._model.facts.is_embedding_model:
            raise NotSupported("this is an embedding model: it does not generate; use embed")
        if self._streams.num_active >= self._max_active:
            raise self._pace.queue_full(self._streams.num_active, self._num_slots)
        start = len(request.resume.delivered) // TOKEN_BYTES if request.resume is not None else 0
        self._streams.open(
            ref,
            peer,
            now,
            credit=request.credit,
            attempt=request.attempt,
            start=start,
            deadline=deadline_of(envelope, now),
        )
        stream = self._streams.find(ref)
        assert stream is not None
        self._try(stream, now, lambda: self._prepare(stream, request))

    def resume(self, envelope: Envelope, body: Resume, now: float) -> None:
        """Send a stream again from an index."""
        if not 0 <= body.next_index < 2**31:
            raise InvalidRequest(f"next_index must be 0 or greater, got {body.next_index}", field="next_index")
        self._carry_out(self._streams.resume(envelope.ref, envelope.peer, body.next_index, now))

    def credit(self, envelope: Envelope, body: Credit, now: float) -> None:
        """Let a stream send more; 0 is a sign of life."""
        if not 0 <= body.tokens <= MAX_GRANT:
            raise InvalidRequest(f"tokens must be from 0 to {MAX_GRANT}, got {body.tokens}", field="tokens")
        self._carry_out(self._streams.credit(envelope.ref, envelope.peer, body.tokens, now))

    def cancel(self, envelope: Envelope, body: Cancel) -> None:
        """End a stream early."""
        reason = body.reason if body.reason in CANCEL_REASONS else "client"
        self._carry_out(self._streams.cancel(envelope.ref, envelope.peer, reason))

    # ---- from the engine -----------------------------------------------------------------------------------------

    def generated(self, report: Generated, now: float) -> None:
        """Tokens."""
        self._carry_out(self._streams.generated(report, now))

    def admitted(self, report: Admitted) -> None:
        """Out of the queue."""
        self._carry_out(self._streams.admitted(report.ref, report.adapters, alone=report.alone))

    def finished(self, report: Finished, now: float) -> None:
        """A good end."""
        running = self._running.pop(report.ref, None)
        reason = report.finish_reason
        if running is not None:
            self._pace.observe(now - running.arrived_at - report.stats.queue_ms / 1e3)
            if reason == "length" and running.fills_context:
                reason = "context"
            if running.is_chat:
                self._chat.remember(report.generated)
        done = Done(
            finish_reason=reason,
            finish_key=report.finish_key,
            finish_len=report.finish_len,
            generated=len(report.generated),
            parts=list(report.parts),
            cancelled=report.cancel_reason is not None,
            cancel_reason=report.cancel_reason,
            cache=report.cache,
            stats=report.stats,
        )
        self._carry_out(self._streams.ended(report.ref, "done", done, now))

    def failed(self, report: Failed, now: float) -> None:
        """A bad end."""
        self._fail(report.ref, report.error, now)

    # ---- time ----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Look at deadlines, forget what is old. Cheap when there is nothing to do: called at every turn of the loop."""
        self._carry_out(self._streams.expire(now))

    def judge_silence(self, now: float) -> None:
        """Cancel the streams of clients that are gone."""
        self._carry_out(self._streams.judge_silence(now))

    def release(self, now: float) -> None:
        """Send all that has ended, without waiting for credit."""
        self._carry_out(self._streams.release(now))

    def end_opening(self, reason: str) -> None:
        """Cancel what has not reached the engine yet; the rest it ends itself when it is parked."""
        self._carry_out(self._streams.end_opening(reason))

    # ---- on the way to the engine --------------------------------------------------------------------------------

    def _prepare(self, stream: Stream, request: Infer) -> None:
        """See that the request can be sampled, then get its prompt. Reading a grammar may take a second: not here."""
        params = request.params
        if params.grammar or params.json_schema:
            self._in_background(
                "grammars",
                stream,
                lambda: self._model.check_sampling(params),
                lambda _: self._make_prompt(stream, request),
            )
        else:
            self._model.check_sampling(params)
            self._make_prompt(stream, request)

    def _make_prompt(self, stream: Stream, request: Infer) -> None:
        """Get the prompt's ids, here or in the background, then go on with `_submit`."""
        vocabulary, n_ctx = self._model.vocabulary, self._model.limits.n_ctx

        def submit(prompt: list[int]) -> None:
            self._submit(stream, request, prompt)

        if request.chat is not None:
            chat = request.chat
            self._in_background("templates", stream, lambda: self._chat.prompt(chat), submit)
        elif request.text is not None and len(request.text) > INLINE_BYTES:
            self._in_background("texts", stream, lambda: text_prompt(request, vocabulary, n_ctx), submit)
        else:
            submit(text_prompt(request, vocabulary, n_ctx))

    def _in_background(self, thread: str, stream: Stream, job: Callable[[], Any], go_on: Callable[[Any], None]) -> None:
        """Run `job` in that thread, then `go_on` with its result here, if the stream is still waiting for it."""

        def then(result: Any, error: ErllamaError | None) -> None:
            # Cancelled or expired meanwhile; and its ref may be another attempt's by now.
            if not self._streams.is_active(stream.ref) or self._streams.find(stream.ref) is not stream:
                return
            now = time.monotonic()
            if error is not None:
                self._fail(stream.ref, error, now)
            else:
                self._try(stream, now, lambda: go_on(result))

        self._background(thread).run(job, then)

    def _try(self, stream: Stream, now: float, step: Callable[[], None]) -> None:
        """Run a step; what it refuses ends the stream."""
        try:
            step()
        except ErllamaError as error:
            self._fail(stream.ref, error, now)

    def _submit(self, stream: Stream, request: Infer, prompt: list[int]) -> None:
        n_ctx = self._model.limits.n_ctx
        submit = make_submit(
            stream.ref,
            request,
            prompt,
            vocabulary=self._model.vocabulary,
            n_ctx=n_ctx,
            arrived_at=stream.opened_at,
            deadline=stream.deadline,
        )
        self._running[submit.ref] = _Running(
            request.chat is not None or request.attempt > 0,
            limited_by_context(request, submit, n_ctx),
            submit.arrived_at,
        )
        self._carry_out([submit, *self._streams.accept(submit.ref, self._accepted(submit))])

    def _accepted(self, submit: Submit) -> Accepted:
        return Accepted(
            incarnation=self._incarnation,
            prompt=pack_tokens(submit.prompt),
            seed=submit.seed,
            adapters=list(submit.adapters or ()),
            attempt=submit.attempt,
        )

    def _fail(self, ref: str, error: ErllamaError, now: float) -> None:
        self._running.pop(ref, None)
        self._carry_out(self._streams.ended(ref, "error", error_body(error), now))


def deadline_of(envelope: Envelope, now: float) -> float | None:
    """When the caller stops waiting, on the monotonic clock; None is never."""
    return now + envelope.deadline_ms / 1e3 if envelope.deadline_ms > 0 else None
