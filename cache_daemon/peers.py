"""The workers that have registered, and how their deaths are noticed. Owner: the service loop.

A pidfd becomes readable the moment its process ends, so a poller sees a death within milliseconds. Where the kernel has none, the
loop asks every half second.
"""

import os
from dataclasses import dataclass

from erllama_host.process import exists
from erllama_host.protocol.cache import WorkerRegister

CHECK_INTERVAL_S = 0.5


@dataclass(slots=True)
class Peer:
    """A registered worker.

    Attributes:
        owner: names it in the catalog; unique to this life of the worker.
        pidfd: None where the kernel has none.
    """

    routing: bytes
    owner: str
    model_id: str
    pid: int
    pidfd: int | None
    namespace: bytes
    tier: str


class PeerTable:
    """All registered workers."""

    def __init__(self) -> None:
        self._by_routing: dict[bytes, Peer] = {}
        self.namespaces: dict[str, set[bytes]] = {}
        """Model id → namespaces it has had, also after its worker has left."""

    def __len__(self) -> int:
        return len(self._by_routing)

    def all(self) -> list[Peer]:
        """Every worker."""
        return list(self._by_routing.values())

    def register(self, routing: bytes, hello: WorkerRegister) -> Peer | None:
        """Add a worker, or find it again; None when its process has ended already."""
        owner = f"{hello.model_id}@{hello.incarnation}"
        known = self._by_routing.get(routing)
        if known is not None and known.owner == owner:
            return known
        pidfd = _open_pidfd(hello.pid)
        if pidfd is None and not exists(hello.pid):
            return None
        peer = Peer(routing, owner, hello.model_id, hello.pid, pidfd, hello.namespace, hello.tier)
        self._by_routing[routing] = peer
        self.namespaces.setdefault(hello.model_id, set()).add(hello.namespace)
        return peer

    def get(self, routing: bytes) -> Peer | None:
        """The worker behind a routing id."""
        return self._by_routing.get(routing)

    def of_owner(self, owner: str) -> Peer | None:
        """The worker of that name."""
        return next((peer for peer in self._by_routing.values() if peer.owner == owner), None)

    def remove(self, peer: Peer) -> None:
        """Forget a worker."""
        if self._by_routing.pop(peer.routing, None) is not None and peer.pidfd is not None:
            os.close(peer.pidfd)

    def dead(self) -> list[Peer]:
        """Workers without pidfd whose process has ended."""
        return [peer for peer in self._by_routing.values() if peer.pidfd is None and not exists(peer.pid)]

    def model_of(self, namespace: bytes) -> str:
        """A model that uses a namespace, else the beginning of the namespace in hex."""
        named = [model for model, spaces in self.namespaces.items() if namespace in spaces]
        return ",".join(sorted(named)) or namespace.hex()[:12]


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
