"""The controller with real workers of the stub backend: load, use, unload, refusals, events. One host for the whole file."""

import os

import msgspec
import pytest
import zmq

from erllama_host.errors import (
    AlreadyLoaded,
    ConfigError,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotLoaded,
    ProtocolMismatch,
    Timeout,
)
from erllama_host.ids import new_ref
from erllama_host.protocol import Envelope, encode_envelope
from erllama_host.protocol.kinds import LINK_KINDS
from tests.support.hosts import running_host

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def host():
    with running_host() as host:
        yield host


@pytest.fixture
def client(host):
    with host.client() as client:
        yield client
        for model in client.call("list_models").get("models", []):
            client.call("unload", {"model_id": model["model_id"]})


def test_load_use_list_unload(client):
    info = client.load_stub("tiny")
    assert info["model_id"] == "tiny" and info["status"] == "idle" and info["pid"] > 0
    assert len(client.infer("tiny", 5)) == 5
    assert [each["model_id"] for each in client.call("list_models")["models"]] == ["tiny"]
    assert client.call("models")["pids"] == {"tiny": [info["pid"]]}
    with pytest.raises(AlreadyLoaded):
        client.load_stub("tiny")
    client.call("unload", {"model_id": "tiny"})
    assert client.call("list_models") == {}
    with pytest.raises(ModelNotLoaded):
        client.call("status", model="tiny")
    assert client.load_stub("tiny")["pid"] != info["pid"]


def test_automatic_ids_are_never_used_twice(client):
    first = client.call("load_model", {"config": {"backend": "stub"}})["model_id"]
    client.call("unload", {"model_id": first})
    second = client.call("load_model", {"config": {"backend": "stub"}})["model_id"]
    number = int(first.rpartition("_")[2])
    assert (first, second) == (f"erllama_model_{number}", f"erllama_model_{number + 1}")


def test_a_repeated_request_does_not_load_twice(client):
    body = {"config": {"backend": "stub"}, "request_id": "once"}
    refs = [client.send("load_model", body) for _ in range(2)]
    answers = [client.answer(ref) for ref in refs]
    again = client.call("load_model", body)
    assert len({each["model_id"] for each in [*answers, again]}) == 1
    assert len(client.call("list_models")["models"]) == 1


def test_progress_is_told_and_wait_can_be_declined(client):
    client.load_stub("tiny", load_ms=300.0)
    phases = [body["phase"] for envelope, body in client.seen if envelope.kind == "progress"]
    assert phases[0] == "starting" and len(phases) > 1
    body = {"model_id": "other", "config": {"backend": "stub"}, "wait": False}
    assert client.call("load_model", body).get("status", "loading") in ("loading", "idle")


def test_files_that_are_not_models_are_refused_at_once(client, tmp_path):
    text = tmp_path / "text.gguf"
    text.write_text("I am not a model")
    for path, words in ((tmp_path / "none.gguf", "does not exist"), (tmp_path, "directory"), (text, "not a GGUF")):
        with pytest.raises(ModelLoadFailed, match=words):
            client.call("load_model", {"path": str(path), "model_id": "x"})
    with pytest.raises(InvalidRequest, match="absolute"):
        client.call("load_model", {"path": "models/x.gguf"})
    assert client.call("list_models") == {}


def test_bad_options_name_the_key(client):
    for config, key in (({"n_ctx": 0}, "n_ctx"), ({"bogus": 1}, "bogus"), ({"n_batch": "x"}, "n_batch")):
        with pytest.raises(ConfigError) as caught:
            client.call("load_model", {"model_id": "x", "config": {"backend": "stub", **config}})
        assert caught.value.details["key"] == key
    with pytest.raises(InvalidRequest, match="model_id"):
        client.load_stub("Not Valid")


def test_messages_that_make_no_sense_are_answered(client):
    with pytest.raises(InvalidRequest, match="no kind"):
        client.call("frobnicate")
    for kind in LINK_KINDS:
        with pytest.raises(InvalidRequest, match="no kind"):
            client.call(kind)
    with pytest.raises(InvalidRequest, match="nonsense"):
        client.call("hello", {"nonsense": 1})
    client.load_stub("tiny")
    with pytest.raises(InvalidRequest, match="does not belong"):
        client.answer(client.send("status", model="tiny", ref=new_ref("other")))
    ref = new_ref()
    client.socket.send_multipart([encode_envelope(Envelope(99, "hello", ref)), b""])
    envelope, body = client.receive()
    assert envelope.kind == "error" and body["code"] == ProtocolMismatch.__name__
    for frames in ([b""], [b"\xff" * 5000, b""], [b"x", b"y", b"z"]):
        client.socket.send_multipart(frames)
        envelope, body = client.receive()
        assert envelope.kind == "error" and body["code"] == "InvalidRequest"
    assert client.call("hello")["protocol"] == 1


def test_a_call_ends_at_its_deadline(client):
    ref = new_ref()
    body = {"model_id": "slow", "config": {"backend": "stub", "stub": {"hang_in_load": True}}}
    client.socket.send_multipart(
        [encode_envelope(Envelope(1, "load_model", ref, "", 300)), msgspec.msgpack.encode(body)]
    )
    with pytest.raises(Timeout):
        client.answer(ref)
    assert client.call("status", model="slow")["status"] == "loading"
    client.call("unload", {"model_id": "slow"}, timeout_s=25)


def test_events_can_be_waited_for(client):
    last = client.call("events", {"limit": 1000}).get("next", 0)
    ref = client.send("events", {"since": last, "wait_ms": 20_000})
    client.load_stub("tiny")
    waited = next(body for envelope, body in client.seen if envelope.ref == ref)
    assert [event["name"] for event in waited["events"]] == ["loading"]
    names = [event["name"] for event in client.call("events", {"since": last})["events"]]
    assert names == ["loading", "ready"]


def test_counters_and_status_show_the_parts(client, host):
    client.load_stub("tiny")
    client.infer("tiny", 3)
    status = client.call("host_status")
    roles = {each["role"]: each for each in status["processes"]}
    assert set(roles) == {"circusd", "controller", "cache", "model:tiny"}
    assert all(each["resident_bytes"] > 0 for each in roles.values())
    assert roles["circusd"]["pid"] == host.state().circusd_pid
    assert status["memory"]["ram_total_bytes"] > status["memory"]["ram_used_bytes"] > 0
    assert client.call("counters")["counters"]["requests"] > 3
    assert "tiers" in client.call("cache", {"op": "stats"})["result"]


def test_directories_files_and_sockets_are_private(host, client):
    client.load_stub("tiny")
    for top in (host.paths.home, host.paths.run):
        for path in (top, *top.rglob("*")):
            assert path.stat().st_uid == os.geteuid() and path.stat().st_mode & 0o077 == 0, path


def test_a_client_that_vanishes_does_not_disturb(host, client):
    client.load_stub("tiny", token_ms=5.0)
    with host.client() as other:
        other.send("infer", {"text": "hello", "max_tokens": 200}, "tiny")
        other.receive()
    assert len(client.infer("tiny", 20)) == 20
    context = zmq.Context()
    stray = context.socket(zmq.REQ)
    stray.setsockopt(zmq.LINGER, 0)
    stray.connect(host.endpoint)
    stray.send(b"what is this")
    assert len(client.infer("tiny", 3)) == 3
    context.destroy()
