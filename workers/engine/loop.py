"""The engine thread: the only one that touches the model. `Engine.run` is its whole life.

A tick takes in commands, admits and restores, computes one decode, packs a little, and announces reports. It blocks only
when there is nothing to do at all. Whatever it does not expect ends the process through `hooks.on_crash`: the state of a
native library that has failed half-way is not to be trusted, and a respawn with a warm cache costs less than a wrong answer.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from erllama_host.config.model import ModelSpec
from erllama_host.errors import ErllamaError
from erllama_host.observability import Log
from workers.backend.base import Progress
from workers.commands import CancelRequest, Command, EngineCall, EngineSnapshot, Hold, Park, Report, Stop, Submit, Work
from workers.engine.admission import Admission
from workers.engine.answers import Answers
from workers.engine.calls import AdapterHashed, Calls
from workers.engine.core import Clock, Core, MakeText
from workers.engine.load import MakeStore, OpenBackend, Ready, load
from workers.engine.mailbox import Mailbox
from workers.engine.parking import Parking
from workers.engine.pulse import Pulse
from workers.engine.requests import Requests
from workers.engine.stepper import StepInfo, Stepper
from workers.sequence import Phase

IDLE_WAIT_S = 1.0
POLL_WAIT_S = 0.02
"""While the store owes an answer its wake-up ends the wait; this is for its deadline."""
SNAPSHOT_EVERY_S = 0.05
"""Between decodes of streams alone, the snapshot may be that old: making one costs as much as a tenth of a step's book-keeping."""


@dataclass(frozen=True)
class EngineHooks:
    """What the engine tells the rest of the worker, from the engine thread; none may block.

    Attributes:
        wake_service: there are new reports. on_progress: while loading.
        on_ready, on_load_failed: one of them, once. on_crash: an exception nobody expected; must end the process.
        on_stopped: the loop has been left after `Stop`.
    """

    wake_service: Callable[[], None]
    on_progress: Progress
    on_ready: Callable[[Ready], None]
    on_load_failed: Callable[[ErllamaError], None]
    on_crash: Callable[[BaseException], None]
    on_stopped: Callable[[], None]


class Engine:
    """One model's engine. `run` is the body of its thread; `post`, `reports`, `snapshot`, `abort` are for the service."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        open_backend: OpenBackend,
        make_store: MakeStore,
        make_text: MakeText,
        hooks: EngineHooks,
        log: Log,
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            open_backend: loads the model; called in the engine thread.
            make_store: makes the cache client, called in the engine thread when the namespace is known; None: no cache.
            make_text: makes the text filters of one answer.
        """
        self._spec = spec
        self._open_backend = open_backend
        self._make_store = make_store
        self._make_text = make_text
        self._hooks = hooks
        self._log = log
        self._clock = clock
        self._mailbox = Mailbox(hooks.wake_service)
        self._snapshot = EngineSnapshot()
        self._ready: Ready | None = None
        self._pulse: Pulse | None = None

    # --- any thread ---------------------------------------------------------------------------------------------------

    def post(self, command: Command) -> None:
        """Hand over a command. Never blocks."""
        self._mailbox.post(command)

    def reports(self) -> list[Report]:
        """Reports since the last call, in order. Never blocks."""
        return self._mailbox.reports()

    @property
    def snapshot(self) -> EngineSnapshot:
        """What the engine is doing."""
        return self._snapshot

    @property
    def work(self) -> Work | None:
        """The piece of work that the engine is at; None while it has nothing to do, or still loads."""
        return self._pulse.work if self._pulse is not None else None

    def abort(self) -> None:
        """Stop the running decode as soon as possible, for a quick end: post a `Stop` first."""
        if self._ready is not None:
            self._ready.backend.abort()

    # --- engine thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load the model, serve until `Stop`, end what is left."""
        try:
            serving = self._load()
            if serving is not None:
                serving.serve()
                serving.close()
                self._hooks.on_stopped()
        except BaseException as error:
            self._hooks.on_crash(error)
            raise

    def _load(self) -> "Serving | None":
        try:
            core, ready = load(
                self._spec, self._open_backend, self._make_store, self._make_text, self._mailbox,
                self._hooks.on_progress, self._clock, self._log,
            )  # fmt: skip
        except ErllamaError as error:
            self._hooks.on_load_failed(error)
            return None
        self._ready, self._pulse = ready, core.pulse
        serving = Serving(core, self._publish)
        self._hooks.on_ready(ready)
        return serving

    def _publish(self, snapshot: EngineSnapshot) -> None:
        self._snapshot = snapshot


class Serving:
    """The loop of a loaded engine. Tests drive it tick by tick."""

    def __init__(self, core: Core, publish: Callable[[EngineSnapshot], None]) -> None:
        self.core = core
        self._publish = publish
        self._answers = Answers(core)
        self._requests = Requests(core, self._answers)
        self._admission = Admission(core, self._requests, self._answers)
        self._stepper = Stepper(core, self._requests, self._answers)
        self._stepper.before_decode = self._before_decode
        self._calls = Calls(core, self._requests)
        self._parking = Parking(core, self._requests)
        self._stopped = False
        self._snapshot_at = float("-inf")
        self._tell_next = True
        self._was_idle = True

    def serve(self) -> None:
        """Tick until `Stop`."""
        while not self._stopped:
            if not self.tick():
                self._sleep()

    def tick(self) -> bool:
        """One round. Returns whether anything happened, so that another round may be worth while."""
        core, now = self.core, self.core.clock()
        core.pulse.begin()
        moved = self._take_commands()
        self._requests.expire(now)
        moved |= self._admission.advance(now)
        core.mailbox.announce()  # a first token from stored logits does not wait for the decode that follows
        stepped = self._stepper.step()
        moved |= core.kv.advance(streaming=core.num_streaming > 0)
        moved |= self._calls.advance(now)
        moved |= self._parking.advance(now)
        if not core.by_ref:
            moved |= self._became_idle()
        else:
            self._was_idle = False
        core.mailbox.announce()
        return moved or stepped

    def close(self) -> None:
        """End what is left, and say goodbye to the cache.

        The model is not freed: the service's threads may be inside its vocabulary just now, and the process is about to end.
        """
        core = self.core
        self._requests.end_all(core.parking or "shutdown")
        core.mailbox.announce()
        if core.kv.store is not None:
            core.kv.store.close(time.monotonic() + 1.0)

    # --- parts of a tick ----------------------------------------------------------------------------------------------

    def _take_commands(self) -> bool:
        commands = self.core.mailbox.commands()
        for command in commands:
            match command:
                case Submit():
                    self._requests.submit(command)
                case CancelRequest():
                    self._requests.cancel(command)
                case Hold():
                    self._requests.hold(command)
                case EngineCall():
                    self._calls.take(command)
                case AdapterHashed():
                    self._calls.adapter_hashed(command)
                case Park():
                    self._parking.begin(command)
                case Stop():
                    self._stopped = True
        return bool(commands)

    def _before_decode(self, info: StepInfo) -> None:
        self.core.pulse.begin(self.core.rates.step_estimate_s(info.num_prefill))
        now, of_prefill = self.core.clock(), info.num_prefill > 0
        tell = of_prefill or self._tell_next or now - self._snapshot_at >= SNAPSHOT_EVERY_S
        if not tell:
            return
        self._snapshot_at, self._tell_next = now, of_prefill
        self._publish(self._snapshot())

    def _became_idle(self) -> bool:
        """Nothing to do: check that no cell leaked, carry out a put-off `evict`, and say that we are idle."""
        self._calls.drop_when_idle()
        if self._was_idle:
            return False
        self._was_idle = True
        drift = self.core.pool.drift() if self.core.backend.has_context else []
        if drift:
            self.core.log.error("cells_drifted", details=drift[:8])
            self.core.counters["errors_InternalError"] += 1
            for live in list(self.core.pool.cells):
                self.core.pool.drop(live)
            for seq in self.core.pool.cells.unused_ids:
                self.core.backend.clear(seq)
        self._tell_next = True
        self._publish(self._snapshot())
        return True

    def _sleep(self) -> None:
        core = self.core
        self._answers.flush_all()
        core.mailbox.announce()
        self._tell_next = True
        self._publish(self._snapshot())
        core.pulse.rest()
        timeout = POLL_WAIT_S if core.kv.waiting or self._calls.waiting else IDLE_WAIT_S
        deadlines = [one.submit.deadline for one in core.by_ref.values() if one.submit.deadline is not None]
        if self._stepper.gathers_until is not None:
            deadlines.append(self._stepper.gathers_until)
        if deadlines:
            timeout = min(timeout, max(0.0, min(deadlines) - core.clock()))
        if core.parking is not None:
            timeout = min(timeout, POLL_WAIT_S)
        core.mailbox.wait(timeout)

    def _snapshot(self) -> EngineSnapshot:
        core, cells = self.core, self.core.pool.cells
        phases = {request.phase for request in core.running}
        prefilling = phases - {Phase.DECODE}
        counters: dict[str, float] = dict(core.counters)
        counters["dropped_sequences"] = core.pool.num_dropped
        if core.kv.store is not None:
            counters.update((f"cache_{name}", value) for name, value in core.kv.store.counters().items())
        return EngineSnapshot(
            phase="prefilling" if prefilling else "generating" if phases else "idle",
            running=len(core.running),
            queued=len(core.queue),
            used_cells=cells.used,
            live_cells=cells.retained,
            tokens_per_s=core.rates.tokens_per_s,
            prefill_tokens_per_s=1 / core.rates.prefill_row_s if core.rates.prefill_row_s else 0.0,
            last_cache_hit=core.last_cache_hit,
            cache_refused=core.kv.refused,
            counters=counters,
        )
