"""Messages go where their envelopes say; what cannot be forwarded is answered in the controller's name."""

import msgspec
import pytest

from erllama_host.config import Config, ModelConfig, parse_config
from erllama_host.controller.front import Request
from erllama_host.controller.lifecycle import Event, Model, Models
from erllama_host.controller.links import Links
from erllama_host.controller.routing import Handlers, Router
from erllama_host.ids import new_ref
from erllama_host.observability import Log
from erllama_host.protocol import Envelope, decode_envelope, encode_envelope
from erllama_host.protocol.link import WorkerHello

REF = new_ref("tiny")


class FakeFront:
    def __init__(self):
        self.sent = []

    def send(self, peer, kind, ref, body, model=""):
        self.sent.append((peer, kind, ref, body, model))
        return True

    def reply(self, request, body, kind="reply"):
        self.sent.append((request.peer, kind, request.envelope.ref, body, request.envelope.model))

    def refuse(self, request, error):
        self.sent.append((request.peer, "error", request.envelope.ref, error.code, request.envelope.model))


class FakeWorkers:
    def __init__(self):
        self.sent, self.full = [], False

    def send(self, frames):
        if not self.full:
            self.sent.append(frames)
        return not self.full


class FakeAsks:
    def __init__(self):
        self.seen = []

    def answered(self, ref, kind, body):
        self.seen.append((ref, kind, body))


class FakeWorld:
    def __init__(self, config=None):
        self.config, self.log = config or Config(), Log("test")
        self.models, self.links = Models(), Links()
        self.front, self.workers, self.asks = FakeFront(), FakeWorkers(), FakeAsks()
        self.draining = False

    def count(self, name, by=1):
        pass


class FakeKeeper:
    def __init__(self):
        self.wanted = []

    def want(self, model):
        self.wanted.append(model.model_id)


@pytest.fixture
def world():
    return FakeWorld()


@pytest.fixture
def model(world):
    model = world.models.add(Model("tiny", ModelConfig(backend="stub"), "load"), 0.0)
    world.links.hello(b"worker", WorkerHello(model_id="tiny", pid=1, incarnation="1", phase="ready", protocol=1))
    world.models.apply(model, Event.READY, 1.0)
    return model


def make(world, keeper=None):
    calls, links = [], []
    handlers = Handlers(calls.append, lambda *message: links.append(message))
    return Router(world, keeper or FakeKeeper(), handlers), calls, links


def request(kind="infer", ref=REF, model="tiny", body=b"opaque \xff", **fields):
    return Request(b"lclient", Envelope(1, kind, ref, model, 5000), body, **fields)


def test_a_request_is_forwarded_unread_with_the_peer(world, model):
    make(world)[0].on_request(request())
    routing, envelope, body = world.workers.sent[0]
    assert routing == b"worker" and body == b"opaque \xff"
    assert decode_envelope(envelope) == Envelope(1, "infer", REF, "tiny", 5000, b"lclient")
    assert world.front.sent == [] and world.links.peers("tiny") == [b"lclient"] and model.last_used > 1.0


def test_an_answer_goes_to_the_peer_of_its_envelope(world, model):
    router, _, links = make(world)
    envelope = encode_envelope(Envelope(1, "tokens", REF, "tiny", 0, b"lclient"))
    router.on_worker_message([b"worker", envelope, b"opaque"])
    assert world.front.sent == [(b"lclient", "tokens", REF, b"opaque", "tiny")] and links == []


def test_workers_own_messages_and_answers_to_the_controller(world, model):
    router, _, links = make(world)
    router.on_worker_message([b"worker", encode_envelope(Envelope(1, "w.beat", REF, "tiny")), b"x"])
    router.on_worker_message([b"worker", encode_envelope(Envelope(1, "reply", REF, "tiny")), b"y"])
    router.on_worker_message([b"worker", b"nonsense", b""])
    router.on_worker_message([b"worker"])
    assert [kind.kind for _, kind, _ in links] == ["w.beat"] and world.asks.seen == [(REF, "reply", b"y")]
    assert world.front.sent == []


def test_a_fenced_worker_reaches_nobody(world, model):
    world.links.fence(b"old")
    router, _, links = make(world)
    router.on_worker_message([b"old", encode_envelope(Envelope(1, "tokens", REF, "tiny", 0, b"lclient")), b"x"])
    router.on_worker_message([b"old", encode_envelope(Envelope(1, "w.beat", REF, "tiny")), b"x"])
    assert world.front.sent == [] and links == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (request(model="other", ref=new_ref("other")), "ModelNotLoaded"),
        (request(ref=new_ref("other")), "InvalidRequest"),
        (request(ref="nonsense"), "InvalidRequest"),
        (request(kind="frobnicate"), "InvalidRequest"),
        (request(kind="c.park"), "InvalidRequest"),
        (request(kind="evict", role="user"), "Forbidden"),
        (request(kind="unload", role="user"), "Forbidden"),
    ],
)
def test_what_cannot_be_done_is_answered(world, model, sent, code):
    make(world)[0].on_request(sent)
    assert [(kind, body) for _, kind, _, body, _ in world.front.sent] == [("error", code)]
    assert world.workers.sent == []


def test_what_is_never_answered_is_not_answered_with_errors_either(world, model):
    router = make(world)[0]
    for kind in ("cancel", "credit"):
        router.on_request(request(kind=kind, model="other", ref=new_ref("other")))
    world.models.apply(model, Event.DIED, 2.0)
    for kind in ("cancel", "credit"):
        router.on_request(request(kind=kind))
    assert world.front.sent == [] and world.workers.sent == []


def test_a_model_that_restarts_says_so(world, model):
    world.models.apply(model, Event.DIED, 2.0)
    router = make(world)[0]
    router.on_request(request())
    router.on_request(request(kind="resume"))
    router.on_request(request(kind="status"))
    assert [body for _, _, _, body, _ in world.front.sent[:2]] == ["ModelLoading", "ModelLoading"]
    assert world.front.sent[2][3].status == "restarting"
    assert world.links.peers("tiny") == [b"lclient"], "it will be told when the model is back"


def test_a_worker_that_cannot_take_more_is_no_reason_to_wait(world, model):
    world.workers.full = True
    make(world)[0].on_request(request())
    assert world.front.sent[0][3] == "ModelLoading"
    world.links.drop("tiny")
    make(world)[0].on_request(request())
    assert world.front.sent[1][3] == "ModelLoading"


def test_a_model_that_is_away_is_fetched_by_requests_that_need_it(world, model):
    world.models.apply(model, Event.LET_GO, 2.0)
    keeper = FakeKeeper()
    router = make(world, keeper)[0]
    for kind in ("credit", "cancel", "status", "evict", "infer"):
        router.on_request(request(kind=kind))
    assert keeper.wanted == ["tiny"]


def test_a_host_that_goes_down_takes_no_new_work_but_finishes_the_old(world, model):
    world.draining = True
    router = make(world)[0]
    for kind in ("infer", "resume", "cancel", "credit", "status"):
        router.on_request(request(kind=kind))
    assert [body for _, _, _, body, _ in world.front.sent] == ["HostUnavailable"]
    assert [decode_envelope(frames[1]).kind for frames in world.workers.sent] == [
        "resume",
        "cancel",
        "credit",
        "status",
    ]


def test_remote_adapters_must_be_where_models_are(tmp_path):
    world = FakeWorld(parse_config(f'[host]\nmodel_dirs = ["{tmp_path}"]\n'))
    model = world.models.add(Model("tiny", ModelConfig(backend="stub"), "load"), 0.0)
    world.models.apply(model, Event.READY, 1.0)
    world.links.hello(b"worker", WorkerHello(model_id="tiny", pid=1, incarnation="1", phase="ready", protocol=1))
    router = make(world)[0]
    for path in ("/etc/passwd", f"{tmp_path}/a\0b", f"{tmp_path}/a.gguf"):
        router.on_request(request(kind="load_adapter", body=msgspec.msgpack.encode({"path": path}), remote=True))
    router.on_request(request(kind="load_adapter", body=msgspec.msgpack.encode({"path": "/etc/passwd"})))
    assert [body for _, _, _, body, _ in world.front.sent] == ["Forbidden"] * 2 and len(world.workers.sent) == 2


def test_host_calls_go_to_their_handler(world):
    router, calls, _ = make(world)
    router.on_request(request(kind="hello", model=""))
    assert [each.envelope.kind for each in calls] == ["hello"]
