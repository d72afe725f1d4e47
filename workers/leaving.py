"""How a worker ends on request: park (finish or cut off, save), answer, leave. Service thread only.

    serving ── c.park / SIGTERM ──▶ parking ── engine answered ──▶ parked ── SIGTERM ──▶ gone
                                       └────── second SIGTERM, or far too late ───────────▶ gone

`c.park` waits for its SIGTERM, so that the supervisor sees a watcher stop when it asks for that and not before.
"""

from collections.abc import Callable

from erllama_host.errors import ErllamaError
from erllama_host.protocol.calls import Saved
from erllama_host.protocol.link import Park as ParkBody
from workers.calls import EngineCalls
from workers.commands import HANDOVER, Park
from workers.model import LoadedModel

FINISH_ON_SIGNAL_S = 2.0
OVERTIME_S = 3.0
"""How long after its own bounds a park is waited for: the engine may sit in one long step."""


class Leaving:
    """The way out."""

    def __init__(self, save_timeout_s: float) -> None:
        self._save_timeout_s = save_timeout_s
        self._state = "serving"
        self._replies: list[Callable[[Saved], None]] = []
        self._saved = Saved()
        self._num_signals = 0
        self._give_up_at = float("inf")

    @property
    def is_serving(self) -> bool:
        """Whether new requests are taken."""
        return self._state == "serving"

    def park(
        self, body: ParkBody, model: LoadedModel | None, calls: EngineCalls, reply: Callable[[Saved], None], now: float
    ) -> None:
        """Begin to park, or join in; `reply` is called when it is done."""
        if self._state == "parked":
            reply(self._saved)
            return
        self._replies.append(reply)
        if self._state == "serving":
            self._begin(body, model, calls, now)

    def terminate(self, model: LoadedModel | None, calls: EngineCalls, now: float) -> None:
        """SIGTERM has come."""
        self._num_signals += 1
        if self._state == "serving":
            body = ParkBody(reason=HANDOVER, finish_s=FINISH_ON_SIGNAL_S, save_s=self._save_timeout_s)
            self._begin(body, model, calls, now)

    def is_over(self, now: float) -> bool:
        """Whether to leave now."""
        if self._num_signals == 0:
            return False
        return self._state == "parked" or self._num_signals > 1 or now >= self._give_up_at

    def _begin(self, body: ParkBody, model: LoadedModel | None, calls: EngineCalls, now: float) -> None:
        if model is None:
            self._parked(Saved())
            return
        self._state = "parking"
        self._give_up_at = now + body.finish_s + body.save_s + OVERTIME_S
        call_id = calls.begin("c.park", None, self._parked, self._park_failed)
        model.engine.post(Park(call_id, body.reason, body.finish_s, body.save_s))

    def _parked(self, saved: Saved) -> None:
        self._state, self._saved = "parked", saved
        for reply in self._replies:
            reply(saved)
        self._replies.clear()

    def _park_failed(self, error: ErllamaError) -> None:
        self._parked(Saved(complete=False))
