"""Connected workers: which routing id serves which model, and which are fenced off because a younger one serves. Pure."""

from collections import OrderedDict
from dataclasses import dataclass

from erllama_host.protocol.link import WorkerBeat, WorkerHello

MAX_PEERS = 4096
MAX_FENCED = 256


@dataclass
class Link:
    """One connected worker.

    `beat`: its last heartbeat.
    """

    model_id: str
    routing: bytes
    pid: int
    incarnation: str
    beat: WorkerBeat | None = None


class Links:
    """The table of workers. Owner: the controller's loop."""

    def __init__(self) -> None:
        self._by_routing: dict[bytes, Link] = {}
        self._by_model: dict[str, Link] = {}
        self._fenced: OrderedDict[bytes, None] = OrderedDict()
        self._peers: dict[str, OrderedDict[bytes, None]] = {}

    def saw(self, model_id: str, peer: bytes) -> None:
        """Client `peer` has sent something to a model."""
        peers = self._peers.setdefault(model_id, OrderedDict())
        peers[peer] = None
        peers.move_to_end(peer)
        if len(peers) > MAX_PEERS:
            peers.popitem(last=False)

    def peers(self, model_id: str) -> list[bytes]:
        """Clients that lately sent something to a model, the latest last: whom to tell when its worker changes."""
        return list(self._peers.get(model_id, ()))

    def forget_peer(self, model_id: str, peer: bytes) -> None:
        """The client is gone, or does not read; it is known again when it sends something."""
        self._peers.get(model_id, OrderedDict()).pop(peer, None)

    def forget_peers(self, model_id: str) -> None:
        """The model is no more."""
        self._peers.pop(model_id, None)

    def of_model(self, model_id: str) -> Link | None:
        """The worker that serves (or loads) a model."""
        return self._by_model.get(model_id)

    def of_routing(self, routing: bytes) -> Link | None:
        """The worker behind a routing id."""
        return self._by_routing.get(routing)

    def is_fenced(self, routing: bytes) -> bool:
        """Whether what comes from there must not reach anybody."""
        return routing in self._fenced

    def hello(self, routing: bytes, hello: WorkerHello) -> Link | None:
        """A worker introduces itself: its link, or None when a younger incarnation serves and this one is fenced off."""
        old = self._by_model.get(hello.model_id)
        if old is not None and old.incarnation > hello.incarnation:
            self.fence(routing)
            return None
        if old is not None and old.routing == routing and old.incarnation == hello.incarnation:
            return old
        link = Link(hello.model_id, routing, hello.pid, hello.incarnation)
        if old is not None:
            self.fence(old.routing)
        self._by_routing[routing] = self._by_model[hello.model_id] = link
        return link

    def drop(self, model_id: str) -> Link | None:
        """The worker of a model has ended, or is not listened to any more."""
        link = self._by_model.pop(model_id, None)
        if link is not None:
            self._by_routing.pop(link.routing, None)
        return link

    def fence(self, routing: bytes) -> None:
        """Listen to a routing id no more."""
        self._by_routing.pop(routing, None)
        self._fenced[routing] = None
        if len(self._fenced) > MAX_FENCED:
            self._fenced.popitem(last=False)

    def all(self) -> list[Link]:
        """Every connected worker."""
        return list(self._by_model.values())
