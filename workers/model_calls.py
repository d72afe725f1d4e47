"""Calls to a loaded model, streams aside: which way each one goes. Service thread only.

at once           tokenize, detokenize, draft; in the background where the text is long
in background     apply_chat_template
engine            the rest, with ids instead of texts
"""

from collections.abc import Callable
from typing import Any

from erllama_host.errors import ErllamaError
from erllama_host.protocol.calls import AdapterInfo, AdapterList, Nothing, Rendered
from erllama_host.protocol.envelope import Envelope
from erllama_host.protocol.inference import pack_tokens
from workers.background import Background
from workers.calls import (
    ENGINE_KINDS,
    INLINE_BYTES,
    EngineCalls,
    answer_text_call,
    body_for_engine,
    engine_call,
    num_text_bytes,
)
from workers.chat.prompts import Chat
from workers.inference import deadline_of
from workers.model import LoadedModel
from workers.outbox import Outbox

ADAPTER_KINDS = frozenset({"load_adapter", "unload_adapter", "set_adapter_scale"})


class ModelCalls:
    """See the module docstring."""

    def __init__(
        self,
        model: LoadedModel,
        chat: Chat,
        calls: EngineCalls,
        outbox: Outbox,
        background: Callable[[str], Background],
        learn_adapters: Callable[[list[AdapterInfo]], None],
    ) -> None:
        """`learn_adapters` is told which adapters are attached whenever that may have changed."""
        self._model = model
        self._chat = chat
        self._calls = calls
        self._outbox = outbox
        self._background = background
        self._learn_adapters = learn_adapters

    def take(self, envelope: Envelope, body: Any, now: float) -> None:
        """Begin a call; it is answered now or later.

        Raises:
            ErllamaError: it was refused, and nothing was begun.
        """
        kind, model = envelope.kind, self._model
        if kind == "apply_chat_template":
            self._prepare(envelope, "templates", lambda: self._rendered(body), self._reply)
        elif kind in ENGINE_KINDS:
            self._calls.check_room()
            self._prepare(
                envelope,
                "texts" if num_text_bytes(body) > INLINE_BYTES else None,
                lambda: body_for_engine(kind, body, model.vocabulary),
                lambda envelope, converted: self._hand_over(envelope, converted, now),
            )
        else:
            thread = "texts" if num_text_bytes(body) > INLINE_BYTES else None
            self._prepare(envelope, thread, lambda: answer_text_call(kind, body, model), self._reply)

    def ask_for_adapters(self) -> None:
        """Have `learn_adapters` told."""

        def answered(result: AdapterList) -> None:
            self._learn_adapters(result.adapters)

        call_id = self._calls.begin("list_adapters", None, answered, lambda error: None)
        self._model.engine.post(engine_call(call_id, "list_adapters", Nothing(), None))

    def _prepare(
        self, envelope: Envelope, thread: str | None, job: Callable[[], Any], go_on: Callable[[Envelope, Any], None]
    ) -> None:
        """Run `job`, in that background thread or here, then `go_on` with its result, here."""
        if thread is None:
            go_on(envelope, job())
            return

        def then(result: Any, error: ErllamaError | None) -> None:
            if error is not None:
                self._fail(envelope, error)
            else:
                go_on(envelope, result)

        self._background(thread).run(job, then)

    def _hand_over(self, envelope: Envelope, body: Any, now: float) -> None:
        deadline = deadline_of(envelope, now)
        call_id = self._calls.begin(
            envelope.kind,
            deadline,
            lambda result: self._answered(envelope, result),
            lambda error: self._fail(envelope, error),
        )
        self._model.engine.post(engine_call(call_id, envelope.kind, body, deadline))

    def _answered(self, envelope: Envelope, result: Any) -> None:
        self._reply(envelope, result)
        if envelope.kind in ADAPTER_KINDS:
            self.ask_for_adapters()

    def _rendered(self, body: Any) -> Rendered:
        prompt = self._chat.render(body.chat)
        return Rendered(tokens=pack_tokens(prompt.ids), text=prompt.text)

    def _reply(self, envelope: Envelope, body: Any) -> None:
        self._outbox.send(envelope.peer, envelope.ref, "reply", body)

    def _fail(self, envelope: Envelope, error: ErllamaError) -> None:
        self._outbox.error(envelope.peer, envelope.ref, error)
