"""What the controller is told unasked: hello at every connection, progress of the load, heartbeats. Service thread only."""

from erllama_host.config.model import ModelSpec
from erllama_host.errors import ErllamaError
from erllama_host.protocol.envelope import PROTOCOL_VERSION
from erllama_host.protocol.inference import error_body
from erllama_host.protocol.link import BEAT_INTERVAL_S, WorkerFailed, WorkerHello, WorkerProgress, WorkerReady
from workers.model import LoadAdvanced, LoadedModel
from workers.outbox import CONTROLLER, Outbox
from workers.self_info import SelfInfo

MIN_BEAT_GAP_S = 0.1
"""A phase that changes faster is not reported at every change: a hundred short requests a second are not a hundred beats."""
MIN_PROGRESS_STEP = 0.01


class Presence:
    """Speaks for the worker. `phase` is `loading`, `ready` or `stopping`."""

    def __init__(self, spec: ModelSpec, incarnation: str, info: SelfInfo, outbox: Outbox, pid: int) -> None:
        self._spec = spec
        self._incarnation = incarnation
        self._info = info
        self._outbox = outbox
        self._pid = pid
        self._beaten_at = float("-inf")
        self._beaten_status = ""
        self._progress: tuple[str, float] = ("", -1.0)
        self.phase = "loading"

    def status(self, model: LoadedModel | None) -> str:
        """What `status` answers."""
        if self.phase != "ready" or model is None:
            return self.phase
        return model.engine.snapshot.phase

    def hello(self, model: LoadedModel | None, pending: int) -> None:
        """`w.hello`: at every connection, and when the controller asks."""
        hello = WorkerHello(
            model_id=self._spec.model_id,
            pid=self._pid,
            incarnation=self._incarnation,
            phase=self.phase,
            protocol=PROTOCOL_VERSION,
            load_id=self._spec.load_id,
            info=self._info.model_info(self.status(model), model, pending),
        )
        self._outbox.send(CONTROLLER, "", "w.hello", hello)

    def progress(self, report: LoadAdvanced) -> None:
        """`w.progress`, at most once per percent and phase."""
        phase, fraction = self._progress
        if report.phase == phase and 0 <= report.fraction - fraction < MIN_PROGRESS_STEP and report.fraction < 1:
            return
        self._progress = (report.phase, report.fraction)
        self._outbox.send(CONTROLLER, "", "w.progress", WorkerProgress(phase=report.phase, fraction=report.fraction))

    def ready(self, model: LoadedModel) -> None:
        """`w.ready`."""
        self.phase = "ready"
        info = self._info.model_info(self.status(model), model, 0)
        self._outbox.send(CONTROLLER, "", "w.ready", WorkerReady(info=info))

    def failed(self, error: ErllamaError) -> None:
        """`w.failed`."""
        body = WorkerFailed(code=error.code, message=error.message, details=error_body(error).details)
        self._outbox.send(CONTROLLER, "", "w.failed", body)

    def beat(self, model: LoadedModel | None, pending: int, now: float) -> None:
        """`w.beat` when it is time, or when the status has changed."""
        status = self.status(model)
        gap = MIN_BEAT_GAP_S if status != self._beaten_status else BEAT_INTERVAL_S
        if now - self._beaten_at < gap:
            return
        self._beaten_at, self._beaten_status = now, status
        self._outbox.send(CONTROLLER, "", "w.beat", self._info.beat(status, model, pending))
