"""The parts of one controller, so that each can find the others. No behaviour."""

from dataclasses import dataclass, field

from erllama_host.config import Config, Paths
from erllama_host.controller.asks import Asks
from erllama_host.controller.cache_client import CacheClient
from erllama_host.controller.circus_client import CircusClient
from erllama_host.controller.desired import DesiredFile
from erllama_host.controller.footprints import Footprints
from erllama_host.controller.front import Front
from erllama_host.controller.journal import Journal
from erllama_host.controller.lifecycle import Models
from erllama_host.controller.links import Links
from erllama_host.controller.memory import Source
from erllama_host.observability import Log
from erllama_host.transport.pump import Pump


@dataclass
class World:
    """Made once by service.py. Tables: `models`, `links`; files: `desired`, `footprints`, `journal`; ways out: the rest.

    Attributes:
        draining: no new requests; the host is going down. cache_available: the daemon answered its last ping.
        tallies: the host's own counters.
    """

    paths: Paths
    config: Config
    log: Log
    incarnation: str
    started_at: float
    models: Models
    links: Links
    desired: DesiredFile
    footprints: Footprints
    journal: Journal
    circus: CircusClient
    cache: CacheClient
    front: Front
    workers: Pump
    asks: Asks
    memory: Source
    draining: bool = False
    cache_available: bool = False
    tallies: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, by: float = 1) -> None:
        """Add to one of the host's counters."""
        self.tallies[name] = self.tallies.get(name, 0) + by
