"""Messages on `workers.sock`, between a worker and the controller, that are not a client's. Pure.

A worker is a DEALER whose routing id is fresh for each life. It says `w.hello` at start, after every reconnect, and whenever the
controller asks (`c.hello`); `w.progress` while loading; `w.ready` or `w.failed` once; `w.beat` every `BEAT_INTERVAL_S`
and at every change of phase. The controller needs nothing but these to know a worker: it may be younger than they are.
`c.park` asks a worker to finish and save; `c.fence` tells it that a younger one serves its model, so that it leaves.
"""

from typing import Any

import msgspec

from erllama_host.protocol.calls import ModelInfo

BEAT_INTERVAL_S = 1.0


class WorkerHello(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`w.hello`. `phase`: `loading`, `ready`, `stopping`. A younger incarnation fences the older ones."""

    model_id: str
    pid: int
    incarnation: str
    phase: str
    protocol: int
    load_id: str = ""
    info: ModelInfo | None = None


class WorkerProgress(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`w.progress` while the model is loading."""

    phase: str
    fraction: float = 0.0
    loaded_bytes: int = 0
    total_bytes: int = 0


class WorkerReady(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`w.ready`: serves from now on."""

    info: ModelInfo


class WorkerFailed(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`w.failed`: the load cannot succeed; the process leaves with an exit code that is not restarted."""

    code: str
    message: str
    details: dict[str, Any] = {}


class WorkerBeat(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`w.beat`: alive, and what it is doing.

    Attributes:
        busy_for_s: seconds since the engine last made progress, while it has work; 0 when idle.
        stall_limit_s: beyond which `busy_for_s` is a hang, by the worker's own measured rates.
    """

    incarnation: str
    status: str
    busy_for_s: float = 0.0
    stall_limit_s: float = 60.0
    info: ModelInfo | None = None
    counters: dict[str, float] = {}


class Park(msgspec.Struct, kw_only=True, omit_defaults=True, frozen=True):
    """`c.park`: stop admitting; end or finish what runs; save; answer `reply` (Saved). The worker exits on SIGTERM after.

    Attributes:
        reason: `unload` or `shutdown`: the cancel_reason of requests that are cut off.
        finish_s: how long running requests may go on before they are cut off.
        save_s: bound of the save.
    """

    reason: str = "unload"
    finish_s: float = 0.0
    save_s: float = 30.0
