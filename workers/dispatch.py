"""What each message and each report leads to. Service thread only; the loop around it is `service.py`.

A message that cannot be understood is answered with an error that names the fault, is logged at a limited rate, and changes
nothing. Kinds of the link are taken from the controller alone: a message with a client's `peer` cannot be one.
"""

import traceback
from collections.abc import Callable, Iterable
from typing import Any

from erllama_host.config.model import ModelSpec
from erllama_host.errors import ErllamaError, InvalidRequest, ModelLoading
from erllama_host.observability import Log
from erllama_host.process import ExitCode
from erllama_host.protocol.calls import AdapterInfo, ModelStatus
from erllama_host.protocol.envelope import Envelope, decode_body, decode_envelope
from erllama_host.protocol.kinds import MODEL_KINDS
from erllama_host.protocol.link import Park as ParkBody
from workers.background import Background, JobDone
from workers.calls import EngineCalls
from workers.chat.prompts import Chat
from workers.commands import HANDOVER, Admitted, Answer, Failed, Finished, Generated
from workers.inference import Inference
from workers.leaving import Leaving
from workers.model import EngineEnded, LoadAdvanced, Loaded, LoadedModel, LoadFailed
from workers.model_calls import ModelCalls
from workers.outbox import Outbox
from workers.presence import Presence
from workers.self_info import SelfInfo
from workers.streams import Effect, Send

LOADING_RETRY_S = 0.5
UNANSWERED = frozenset({"cancel", "credit"})
"""An error with a stream's ref ends the stream; a faulty `credit` must not."""

MakeChat = Callable[[LoadedModel], Chat]


class Dispatcher:
    """Owner of everything the service thread knows.

    Attributes:
        exit_code: set when the process must end now.
    """

    def __init__(
        self,
        spec: ModelSpec,
        incarnation: str,
        outbox: Outbox,
        info: SelfInfo,
        presence: Presence,
        log: Log,
        report: Callable[[object], None],
        make_chat: MakeChat,
    ) -> None:
        """`report` puts something into the service's own inbox, from any thread."""
        self._spec = spec
        self._incarnation = incarnation
        self._outbox = outbox
        self._info = info
        self._presence = presence
        self._log = log
        self._report = report
        self._make_chat = make_chat
        self._calls = EngineCalls()
        self._leaving = Leaving(spec.config.evict_save_timeout_s)
        self._model: LoadedModel | None = None
        self._inference: Inference | None = None
        self._model_calls: ModelCalls | None = None
        self._backgrounds: dict[str, Background] = {}
        self.exit_code: ExitCode | None = None
        self.failure: ErllamaError | None = None

    # ---- messages ------------------------------------------------------------------------------------------------

    def message(self, frames: list[bytes], now: float) -> None:
        """Take in one message."""
        try:
            envelope = decode_envelope(frames[0])
        except ErllamaError as error:  # nobody to answer to
            self._log.rate_limited("bad_envelope", error=error.message)
            return
        body = frames[1] if len(frames) > 1 else b""
        try:
            if not envelope.peer and envelope.kind.startswith("c."):
                self._from_controller(envelope, body, now)
            else:
                self._from_client(envelope, body, now)
        except ErllamaError as error:
            self._log.rate_limited(
                "refused", kind=envelope.kind, ref=envelope.ref, code=error.code, error=error.message
            )
            if envelope.kind not in UNANSWERED:
                self._outbox.error(envelope.peer, envelope.ref, error)

    def _from_controller(self, envelope: Envelope, frame: bytes, now: float) -> None:
        match envelope.kind:
            case "c.hello":
                self.hello()
            case "c.park":
                self._park(envelope, decode_body("c.park", frame, ParkBody), now)
            case "c.fence":
                self._log.warning("fenced")
                if self._leaving.is_serving:  # else it is on its way out already, and may be saving
                    self.exit_code = ExitCode.FENCED
            case _:
                raise InvalidRequest(f"unknown kind {envelope.kind!r}", field="kind")

    def _from_client(self, envelope: Envelope, frame: bytes, now: float) -> None:
        kind = MODEL_KINDS.get(envelope.kind)
        if kind is None:
            raise InvalidRequest(f"unknown kind {envelope.kind!r}", field="kind")
        body = decode_body(envelope.kind, frame, kind.body)
        match envelope.kind:
            case "status":
                self._reply(envelope, ModelStatus(status=self._presence.status(self._model)))
            case "worker_info":
                self._reply(
                    envelope, self._info.model_info(self._presence.status(self._model), self._model, self.pending)
                )
            case "infer" | "resume" | "cancel" | "credit":
                self._stream_message(envelope, body, now)
            case _:
                if self._model_calls is None:
                    raise _loading()
                self._model_calls.take(envelope, body, now)

    def _stream_message(self, envelope: Envelope, body: Any, now: float) -> None:
        inference = self._inference
        if inference is None:
            if envelope.kind in ("infer", "resume"):
                raise _loading()
            return
        match envelope.kind:
            case "infer":
                if not self._leaving.is_serving:
                    raise ModelLoading("the model is being stopped", retry_after_s=LOADING_RETRY_S)
                inference.infer(envelope, body, now)
            case "resume":
                inference.resume(envelope, body, now)
            case "credit":
                inference.credit(envelope, body, now)
            case "cancel":
                inference.cancel(envelope, body)

    def background(self, name: str) -> Background:
        """The thread of that name; started when first needed."""
        if name not in self._backgrounds:
            self._backgrounds[name] = Background(name, self._report)
        return self._backgrounds[name]

    def _reply(self, envelope: Envelope, body: Any) -> None:
        self._outbox.send(envelope.peer, envelope.ref, "reply", body)

    # ---- reports -------------------------------------------------------------------------------------------------

    def engine_reports(self, now: float) -> None:
        """Take in what the engine has reported."""
        if self._model is None or self._inference is None:
            return
        for report in self._model.engine.reports():
            match report:
                case Generated():
                    self._inference.generated(report, now)
                case Admitted():
                    self._inference.admitted(report)
                case Finished():
                    self._inference.finished(report, now)
                case Failed():
                    self._inference.failed(report, now)
                case Answer():
                    self._calls.answered(report)

    def report(self, report: object) -> None:
        """Take in a report from the inbox.

        Raises:
            Exception: a background job failed in a way nobody expected.
        """
        match report:
            case JobDone(then, result, error):
                then(result, error)
            case LoadAdvanced():
                self._presence.progress(report)
            case Loaded(model):
                self._loaded(model)
            case LoadFailed(error):
                self._load_failed(error)
            case EngineEnded(error):
                self._engine_ended(error)
            case Exception():
                raise report
            case _:
                raise AssertionError(f"unknown report {report!r}")

    def _loaded(self, model: LoadedModel) -> None:
        chat = self._make_chat(model)
        self._model = model
        self._inference = Inference(model, self._spec.config, self._incarnation, chat, self.background, self.carry_out)
        self._model_calls = ModelCalls(model, chat, self._calls, self._outbox, self.background, self._learn_adapters)
        self._log.info("ready", load_ms=round(model.load_ms, 1), kv_mode=model.kv_mode, kv_reason=model.kv_reason)
        if not self._leaving.is_serving:  # parked while it loaded
            return
        self._presence.ready(model)
        if self._spec.adapters:
            self._model_calls.ask_for_adapters()

    def _learn_adapters(self, adapters: list[AdapterInfo]) -> None:
        self._info.adapters = adapters

    def _load_failed(self, error: ErllamaError) -> None:
        self._log.error("load_failed", code=error.code, message=error.message)
        self.hello()
        self._presence.failed(error)
        self.failure = error
        self.exit_code = ExitCode.BAD_CONFIG if error.code == "ConfigError" else ExitCode.LOAD_FAILED

    def _engine_ended(self, error: BaseException | None) -> None:
        trace = "".join(traceback.format_exception(error)) if error is not None else "it left its loop unasked"
        self._log.error("engine_ended", trace=trace)
        self.exit_code = ExitCode.OUT_OF_MEMORY if isinstance(error, MemoryError) else ExitCode.CRASHED

    # ---- time, phases --------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Requests that have not ended."""
        return self._inference.num_active if self._inference is not None else 0

    @property
    def model(self) -> LoadedModel | None:
        """The model, once it is loaded."""
        return self._model

    def hello(self) -> None:
        """Say who we are."""
        self._presence.hello(self._model, self.pending)

    def tick(self, now: float) -> None:
        """Once a turn of the loop: heartbeat, deadlines, and the end."""
        self._presence.beat(self._model, self.pending, now)
        self._calls.expire(now)
        if self._inference is not None:
            self._inference.expire(now)
        if self.exit_code is None and self._leaving.is_over(now):
            self.exit_code = ExitCode.CLEAN

    def judge_silence(self, now: float) -> None:
        """A few times a second: cancel the streams of clients that are gone."""
        if self._inference is not None:
            self._inference.judge_silence(now)

    def farewell(self, now: float) -> None:
        """Last messages of an orderly end: how requests ended that were cut off, without waiting for their clients' credit."""
        self.engine_reports(now)
        if self._inference is not None:
            self._inference.release(now)

    def terminate(self, now: float) -> None:
        """SIGTERM."""
        self._log.info("terminate")
        self._stop_serving(HANDOVER)
        self._leaving.terminate(self._model, self._calls, now)

    def _park(self, envelope: Envelope, body: ParkBody, now: float) -> None:
        self._stop_serving(body.reason)
        self._leaving.park(body, self._model, self._calls, lambda saved: self._reply(envelope, saved), now)

    def _stop_serving(self, reason: str) -> None:
        self._presence.phase = "stopping"
        if self._inference is not None:
            self._inference.end_opening(reason)

    def carry_out(self, effects: Iterable[Effect]) -> None:
        """Send messages, post commands."""
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.send(effect.peer, effect.ref, effect.kind, effect.body)
            else:
                assert self._model is not None
                self._model.engine.post(effect)


def _loading() -> ModelLoading:
    return ModelLoading("the model is loading", retry_after_s=LOADING_RETRY_S)
