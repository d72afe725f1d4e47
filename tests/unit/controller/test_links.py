"""Two incarnations of one model never both serve."""

from types import SimpleNamespace

from erllama_host.controller.links import MAX_PEERS, Links
from erllama_host.controller.worker_calls import tell_moved
from erllama_host.protocol.link import WorkerHello


def hello(incarnation: str, model_id: str = "tiny", pid: int = 1) -> WorkerHello:
    return WorkerHello(model_id=model_id, pid=pid, incarnation=incarnation, phase="ready", protocol=1)


def test_a_younger_worker_fences_the_older_one():
    links = Links()
    old = links.hello(b"old", hello("1"))
    young = links.hello(b"young", hello("2"))
    assert links.of_model("tiny") is young and links.of_routing(b"old") is None
    assert links.is_fenced(b"old") and old is not young
    assert links.hello(b"older", hello("0")) is None
    assert links.is_fenced(b"older") and links.of_model("tiny") is young


def test_hello_again_changes_nothing():
    links = Links()
    assert links.hello(b"a", hello("1")) is links.hello(b"a", hello("1"))


def test_a_dropped_worker_makes_room():
    links = Links()
    links.hello(b"a", hello("1"))
    links.drop("tiny")
    assert links.of_model("tiny") is None and links.of_routing(b"a") is None and links.all() == []
    assert links.hello(b"b", hello("0")) is not None


def test_peers_are_kept_over_workers_and_bounded():
    links = Links()
    for number in range(MAX_PEERS + 10):
        links.saw("tiny", number.to_bytes(4, "big"))
    links.saw("tiny", (20).to_bytes(4, "big"))
    peers = links.peers("tiny")
    assert len(peers) == MAX_PEERS and peers[-1] == (20).to_bytes(4, "big")
    assert (0).to_bytes(4, "big") not in peers
    links.forget_peers("tiny")
    assert links.peers("tiny") == []


def test_a_client_that_is_gone_is_told_once_in_vain():
    """Else every restart would count all clients of the last weeks as messages that were dropped."""
    links, asked = Links(), []
    for peer in (b"here", b"gone"):
        links.saw("tiny", peer)

    def send(peer, kind, ref, body, model):
        asked.append(peer)
        return peer == b"here"

    world = SimpleNamespace(links=links, front=SimpleNamespace(send=send))
    tell_moved(world, "tiny", "1")
    tell_moved(world, "tiny", "2")
    tell_moved(world, "other", "3")
    assert asked == [b"here", b"gone", b"here"]


def test_the_list_of_the_fenced_is_bounded():
    links = Links()
    for number in range(1000):
        links.fence(str(number).encode())
    assert not links.is_fenced(b"0") and links.is_fenced(b"999")
