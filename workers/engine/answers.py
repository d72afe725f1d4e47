"""From a sampled token to reports: text, stop strings, log probabilities, limits, coalescing. Engine thread only.

The first token of an answer is reported at once. Later ones wait up to `stream_interval_ms` for company, because a report costs
a message and a token may come every millisecond; but never beside a step with prefill rows, which is slow, and never beyond
the end of the answer.
"""

from erllama_host.protocol.inference import Part
from workers.backend.logprobs import logprob_of
from workers.backend.values import Logits
from workers.commands import Generated
from workers.engine.core import Core
from workers.sequence import Phase, Request


class Answers:
    """Feeds tokens into answers. `accept` returns why an answer is over, and leaves ending it to the caller."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._interval_s = core.config.stream_interval_ms / 1e3
        self._waiting: dict[str, Request] = {}

    def accept(self, request: Request, token: int, logits: Logits | None, now: float) -> str | None:
        """Append a sampled token.

        Args:
            logits: the row it was sampled from, where log probabilities were asked for.
        Returns:
            The finish reason, or None while the answer goes on.
        """
        if request.phase is not Phase.DECODE:
            self._begin(request, now)
        submit, core = request.submit, self._core
        if not submit.ignore_eos and core.backend.vocabulary.is_eog(token):
            return "stop"
        request.row.append(token)
        request.generated.append(token)
        box = request.outbox
        box.ids.append(token)
        if logits is not None:
            box.logprobs.append(logprob_of(logits, token, submit.params.logprobs or 0))
        assert request.text is not None
        box.parts += request.text.push((token,))
        core.counters["generated_tokens"] += 1
        if request.text.stop_found:
            return "stop_string"
        if len(request.generated) >= submit.max_tokens:
            return "length"
        if len(request.row) > core.backend.limits.n_ctx:
            return "context"
        self._send_or_hold(request, now)
        return None

    def finish_text(self, request: Request) -> tuple[Part, ...]:
        """Report what is held of an answer that is over; returns the text that the filters held back."""
        self.flush(request)
        return () if request.text is None else tuple(request.text.finish())

    def flush(self, request: Request) -> None:
        """Report what is held of one answer."""
        self._waiting.pop(request.ref, None)
        box = request.outbox
        if not box.ids:  # text comes with ids only
            return
        logprobs = tuple(box.logprobs) if request.submit.params.logprobs is not None else None
        self._core.mailbox.report(Generated(request.ref, box.first_index, tuple(box.ids), tuple(box.parts), logprobs))
        box.first_index += len(box.ids)
        box.ids, box.parts, box.logprobs = [], [], []

    def flush_all(self) -> None:
        """Report everything held: before a slow step, and before sleeping."""
        for request in list(self._waiting.values()):
            self.flush(request)

    def _begin(self, request: Request, now: float) -> None:
        request.enter(Phase.DECODE)
        times = request.times
        if times.first_token_at is None:
            times.first_token_at = now
        times.decode_from = times.decode_from or now

    def _send_or_hold(self, request: Request, now: float) -> None:
        box = request.outbox
        if box.last_sent_at is None or now - box.last_sent_at >= self._interval_s:
            box.last_sent_at = now
            self.flush(request)
        else:
            self._waiting[request.ref] = request
