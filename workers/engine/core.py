"""What the parts of the engine share: one model's backend, sequences, requests and figures. Owned by the engine thread."""

from collections.abc import Callable
from dataclasses import dataclass, field

from erllama_host.config.model import ModelConfig
from erllama_host.kv.keys import KeySpace
from erllama_host.observability import Log
from workers.adapters import AdapterSet, AdapterTable
from workers.backend.base import Backend, Vocabulary
from workers.commands import Submit
from workers.counters import Counters, new_counters
from workers.engine.mailbox import Mailbox
from workers.engine.pulse import Pulse
from workers.kv_session import KvSession
from workers.namespace import Namespace
from workers.pool import Pool
from workers.scheduler import Rates
from workers.sequence import Phase, Request
from workers.text import AnswerText

IDLE_SHARE = 8
"""Beside running requests, live cache that the store has too may hold `retained_cells_max / IDLE_SHARE / running` cells."""

MakeText = Callable[[Vocabulary, Submit], AnswerText]
Clock = Callable[[], float]


@dataclass
class Core:
    """See the module docstring.

    Attributes:
        pulse: to be told of every piece of work that may take long.
        queue: requests not admitted yet, in order of arrival. running: admitted ones, in order of admission.
        counters: monotonic figures by name, for `counters` and heartbeats.
        parking: the `cancel_reason` for requests while the engine is being parked; None while it serves.
        drop_when_idle: `evict` was asked for while requests ran.
    """

    config: ModelConfig
    backend: Backend
    pool: Pool
    adapters: AdapterTable
    namespace: Namespace
    kv: KvSession
    mailbox: Mailbox
    make_text: MakeText
    clock: Clock
    log: Log
    pulse: Pulse
    queue: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    by_ref: dict[str, Request] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    counters: Counters = field(default_factory=new_counters)
    last_cache_hit: str | None = None
    parking: str | None = None
    drop_when_idle: bool = False

    def space(self, uses: AdapterSet) -> KeySpace:
        """The key space of an adapter set."""
        return self.namespace.space(self.adapters.identity(uses))

    def bound_live_cache(self) -> None:
        """Let live cache go that would slow down what runs; see `Pool.keep_within`. Something must run."""
        bound = self.config.retained_cells_max
        self.pool.keep_within(bound // IDLE_SHARE // len(self.running), bound)

    @property
    def num_streaming(self) -> int:
        """Requests that are generating and not held back by their client."""
        return sum(request.phase is Phase.DECODE and not request.held for request in self.running)
