"""`Client` against a fake host over real sockets: every call, streams through mishaps, the end of things."""

import gc
import signal
import threading
import time

import pytest

from erllama_host.client import Client, Patience
from erllama_host.errors import (
    AlreadyLoaded,
    HostUnavailable,
    InvalidRequest,
    ModelLoading,
    QueueFull,
    Timeout,
    WorkerDied,
)
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import ChatRequest
from tests.support.fake_host import FakeHost
from tests.support.fake_worker import expected_ids, is_valid_answer, text_of_all

SHORT = Patience(connect_s=0.2, accept_s=0.5, grace_s=0.5)


@pytest.fixture
def host():
    with FakeHost() as fake:
        yield fake


@pytest.fixture
def client(host):
    with Client(host.endpoint) as made:
        yield made


def packed(text):
    return bytes(b for ch in text.encode() for b in (ch, 0, 0, 0))


def test_host_calls_send_their_arguments_and_read_their_answers(client, host):
    assert client.hello().protocol == 1
    assert [m.model_id for m in client.list_models()] == ["tiny"]
    assert client.model_info("tiny").model_id == "tiny"
    assert client.models() == {"tiny": [4711]}
    assert client.counters() == {"requests": 1.0}
    assert client.events(since=0, limit=5, wait_ms=1).next == 1
    assert client.host_status().hello.version == "0"
    assert client.restart("tiny").restarts == 1
    assert client.unload("tiny") is None
    assert client.unload_model("tiny") is None
    assert client.drain(1.0) is None
    assert client.cache_stats() == {"op": "stats"}
    assert client.cache_ls("tiny", limit=3) == {"op": "ls", "model": "tiny", "limit": 3}
    assert client.cache_gc() == {"op": "gc"}
    assert client.cache_evict(everything=True) == {"op": "evict", "everything": True, "pinned": False}
    assert client.cache_verify("tiny") == {"op": "verify", "model": "tiny"}
    assert client.cache_pin("00") == {"op": "pin", "key": "00"}
    assert client.cache_unpin("00") == {"op": "unpin", "key": "00"}
    assert {r.envelope.model for r in host.requests} == {""}


def test_load_makes_the_path_absolute_passes_options_and_tells_progress(client, host, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []

    def load(request):
        host._send(request.peer, "progress", request.envelope.ref, "", c.LoadProgress(model_id="tiny", phase="loading"))
        return c.ModelInfo(model_id="tiny")

    host.answers["load_model"] = load
    model = client.load_model("a.gguf", model_id="tiny", n_ctx=512, on_progress=seen.append)
    (request,) = host.of_kind("load_model")
    assert model.model_id == "tiny"
    assert request.body.path == str(tmp_path / "a.gguf")
    assert request.body.config == {"n_ctx": 512}
    assert request.body.request_id
    assert [event.phase for event in seen] == ["loading"]
    with pytest.raises(InvalidRequest, match="model_id"):
        client.load_model("a.gguf", model_id="Not Valid")


def test_model_calls(client, host):
    model = client.model("tiny")
    assert model.status() == "idle"
    assert model.info().model_id == "tiny"
    assert (model.pending_len(), model.queue_depth(), model.last_cache_hit()) == (3, 2, "exact")
    assert model.tokenize("hé", add_special=False) == list("hé".encode())
    assert model.detokenize([104, 105]) == "hi"
    assert model.apply_chat_template([{"role": "user", "content": "hi"}], system="s") == [1]
    assert model.embed("text") == [1.0, 1.0]
    assert model.embed([1, 2]) == [1.0, 1.0]
    assert model.embed(["a", "b"]) == model.embed([[1], [2]]) == [[1.0, 1.0]] * 2
    adapter = model.load_adapter("/x/lora.gguf", scale=0.5)
    assert (adapter.handle, adapter.scale) == ("a1", 0.5)
    assert model.set_adapter_scale(adapter, 0.7) is None
    assert model.unload_adapter("a1") is None
    assert [a.handle for a in model.list_adapters()] == ["a1"]
    assert model.evict().freed_bytes == 10
    assert model.shutdown().saved_tokens == 5
    assert model.cached_prefix_len([1, 2, 3]) == 3
    assert model.end_session("s") is None
    assert model.fork("s", "t") == "t"
    assert model.verify([1], [2, 3]).accepted == 2
    assert model.draft([1, 2, 3], 2) == [1, 2]
    assert model.restart().restarts == 1
    assert model.unload() is None


def test_complete_gives_the_whole_answer(client):
    done = client.model("tiny").complete("hello", max_tokens=20)
    assert done.generated == expected_ids(packed("hello"), 20)
    assert done.text == text_of_all(done.generated)
    assert done.tokens == [*b"hello", *done.generated]
    assert (done.finish_reason, done.finish_key, done.finish_len) == ("length", b"k" * 32, 25)
    assert done.stats.generated_tokens == 20
    assert 0 < done.stats.client_ttft_ms <= done.stats.client_total_ms
    assert (done.resumes, done.cancelled) == (0, False)


def test_chat_and_prefill_only_are_the_same_kind(client, host):
    model = client.model("tiny")
    messages = [{"role": "user", "content": "hi"}]
    options = {"enable_thinking": False}
    done = model.chat(messages, system="s", tools=[{"name": "t"}], template_options=options, max_tokens=3)
    assert done.finish_reason == "length"
    assert model.prefill_only([1, 2, 3]).finish_key == b"k" * 32
    chat, prefill = host.of_kind("infer")
    assert chat.body.chat == ChatRequest(
        messages=messages, system="s", tools=[{"name": "t"}], template_options=options, add_generation_prompt=True
    )
    assert prefill.body.max_tokens == 0


def test_infer_yields_pieces_and_then_stats(client):
    with client.model("tiny").infer([1, 2, 3], max_tokens=10) as stream:
        assert stream.stats is None
        pieces = list(stream)
    ids = [token for piece in pieces for token in piece.token_ids]
    assert ids == expected_ids(bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]), 10)
    assert "".join(piece.text for piece in pieces) == text_of_all(ids)
    assert [p.seq for p in pieces] == sorted(p.seq for p in pieces)
    assert stream.stats.finish_reason == "length"


def test_result_after_some_pieces_is_the_whole_answer(client):
    with client.model("tiny").infer("hello", max_tokens=10) as stream:
        next(stream)
        assert stream.result().generated == expected_ids(packed("hello"), 10)


def test_an_unknown_option_names_itself_and_the_nearest(client, host):
    with pytest.raises(InvalidRequest, match=r"'temprature'.*'temperature'") as caught:
        client.model("tiny").complete("x", temprature=1.0)
    assert caught.value.details["field"] == "temprature"
    assert not host.of_kind("infer")


def test_errors_of_the_host_are_raised_as_they_are(client, host):
    host.answers["load_model"] = AlreadyLoaded("'tiny' exists already")
    host.answers["infer"] = QueueFull("the queue is full", retry_after_s=1.5)
    with pytest.raises(AlreadyLoaded, match="exists already"):
        client.load_model("/x.gguf", model_id="tiny")
    with pytest.raises(QueueFull) as caught:
        client.model("tiny").complete("x")
    assert caught.value.retry_after_s == 1.5
    with pytest.raises(QueueFull):
        list(client.model("tiny").infer("x"))


def test_leaving_a_stream_early_cancels_it(client, host):
    host.paused = True
    with client.model("tiny").infer("hello") as stream:
        host.wait_for("infer")
    assert host.wait_for("cancel")[0].envelope.ref == stream.ref
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="closed before its end"):
        stream.result()


def test_dropping_a_stream_cancels_it(client, host):
    host.paused = True
    ref = client.model("tiny").infer("hello").ref
    gc.collect()
    assert host.wait_for("cancel")[0].envelope.ref == ref


def test_a_cancelled_stream_ends_with_stats(client, host):
    host._pace_s = 0.02
    stream = client.model("tiny").infer("hello", max_tokens=100_000)
    next(stream)
    client.cancel(stream.ref)
    stream.cancel()
    list(stream)
    assert stream.stats.cancelled
    assert stream.stats.cancel_reason == "client"
    client.cancel("tiny/" + "0" * 32)
    client.cancel("no ref at all")


def test_a_slow_reader_bounds_what_is_sent_to_it(client, host):
    with client.model("tiny").infer("hello", max_tokens=1000) as stream:
        next(stream)
        deadline = time.monotonic() + 20
        while host.worker.runs[stream.ref].position < 256 and time.monotonic() < deadline:
            time.sleep(0.01)
        # No more than the window, or two if the machine was so slow that the client asked again.
        assert 256 <= host.worker.runs[stream.ref].position <= 512
        assert len(stream.result().generated) == 1000


def test_a_stream_survives_the_death_of_its_worker(client, host):
    host._pace_s = 0.005
    with client.model("tiny").infer("hello", max_tokens=60) as stream:
        first = [next(stream) for _ in range(3)]
        host.kill_worker()
        host.respawn()
        done = stream.result()
    assert len(done.generated) == 60
    assert is_valid_answer(packed("hello"), done.generated)
    assert done.text == text_of_all(done.generated)
    assert done.text.startswith("".join(piece.text for piece in first))
    assert done.resumes >= 1
    again = host.of_kind("infer")[1]
    assert (again.body.attempt, again.body.resume.deaths, again.body.resume.seed) == (1, 1, 7)


def test_a_stream_survives_without_any_hint(client, host):
    host._pace_s = 0.005
    stream = client.model("tiny").infer("hello", max_tokens=60)
    next(stream)
    host.kill_worker(hint=False)
    host.respawn(hint=False)
    assert len(stream.result().generated) == 60


def test_a_request_waits_while_the_model_loads(client, host):
    host.kill_worker()
    stream = client.model("tiny").infer("hello", max_tokens=5)
    host.wait_for("infer", 2)
    host.respawn()
    assert stream.result().generated == expected_ids(packed("hello"), 5, life=2)


def test_max_resumes_0_tells_of_the_death_at_once(client, host):
    host._pace_s = 0.005
    stream = client.model("tiny").infer("hello", max_tokens=10_000, max_resumes=0)
    next(stream)
    host.kill_worker()
    host.respawn()
    with pytest.raises(WorkerDied):
        list(stream)


def test_a_stream_survives_a_host_that_goes_and_comes_back(client, host):
    host._pace_s = 0.005
    stream = client.model("tiny").infer("hello", max_tokens=60)
    next(stream)
    host.stop()
    host.start()
    done = stream.result()
    assert done.generated == expected_ids(packed("hello"), 60)
    assert done.resumes == 0


def test_a_call_is_sent_again_to_a_host_that_came_back(client, host):
    client.hello()
    host.answers["tokenize"] = lambda request: None
    result = []
    thread = threading.Thread(target=lambda: result.append(client.model("tiny").tokenize("hi")))
    thread.start()
    host.wait_for("tokenize")
    host.stop()
    del host.answers["tokenize"]
    host.start()
    thread.join(20)
    assert result == [[104, 105]]


def test_what_must_not_happen_twice_is_not_sent_again(client, host):
    host.answers["load_adapter"] = lambda request: None
    errors = []

    def load():
        try:
            client.model("tiny").load_adapter("/x.gguf")
        except HostUnavailable as error:
            errors.append(error.message)

    thread = threading.Thread(target=load)
    thread.start()
    host.wait_for("load_adapter")
    host.stop()
    host.start()
    thread.join(20)
    assert "may or may not" in errors[0]
    assert len(host.of_kind("load_adapter")) == 1


def test_a_call_waits_while_the_model_loads_but_not_for_ever(client, host):
    answers = iter([ModelLoading("loading", retry_after_s=0.01)] * 2)
    host.answers["tokenize"] = lambda request: next(answers, c.TokenList())
    assert client.model("tiny").tokenize("hi") == []
    host.answers["tokenize"] = ModelLoading("loading", retry_after_s=0.01)
    with Client(host.endpoint, timeout_s=2.0) as hasty, pytest.raises(ModelLoading):
        hasty.model("tiny").tokenize("hi")


def test_a_call_without_an_answer_times_out(host):
    host.answers["counters"] = lambda request: None
    client = Client(host.endpoint, timeout_s=0.2)
    with pytest.raises(Timeout, match="counters"):
        client.counters()
    client.close()


def test_a_deadline_ends_a_request_that_nobody_takes(client, host):
    host.kill_worker()
    with pytest.raises(Timeout, match="deadline_s"):
        client.model("tiny").complete("hello", deadline_s=0.3)
    assert 0 < host.of_kind("infer")[0].envelope.deadline_ms <= 300


def test_a_host_that_is_not_there_is_reported_soon(tmp_path):
    started = time.monotonic()
    with pytest.raises(HostUnavailable, match="erllama up"), Client(f"ipc://{tmp_path}/no.sock"):
        pass
    assert time.monotonic() - started < 20
    client = Client(f"ipc://{tmp_path}/no.sock", patience=SHORT)
    with pytest.raises(HostUnavailable):
        client.model("tiny").complete("x")
    with pytest.raises(HostUnavailable):
        list(client.model("tiny").infer("x"))
    client.close()


def test_a_stream_gives_up_on_a_host_that_stays_away(host):
    with Client(host.endpoint, patience=Patience(connect_s=2.0, grace_s=0.1)) as client:
        host.paused = True
        stream = client.model("tiny").infer("hello")
        host.wait_for("infer")
        host.stop()
        with pytest.raises(HostUnavailable):
            list(stream)
        host.start()


def test_closing_wakes_whoever_waits_and_leaves_no_thread(host):
    before = set(threading.enumerate())
    client = Client(host.endpoint)
    client.hello()
    host.paused = True
    stream = client.model("tiny").infer("hello")
    host.wait_for("infer")
    errors = []

    def read():
        try:
            list(stream)
        except HostUnavailable as error:
            errors.append(error.message)

    reader = threading.Thread(target=read)
    reader.start()
    client.close()
    client.close()
    reader.join(20)
    assert errors == ["this client is closed"]
    assert set(threading.enumerate()) <= before
    host.wait_for("cancel")
    with pytest.raises(RuntimeError, match="closed"):
        client.hello()
    stream.close()


def test_a_client_that_is_dropped_ends_its_thread(host):
    before = set(threading.enumerate())
    client = Client(host.endpoint)
    client.hello()
    del client
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("kind", ["infer", "tokenize"])
def test_an_interrupted_wait_leaves_nothing_behind(client, host, kind):
    """Ctrl-C, in the main thread: what nobody waits for is cancelled and forgotten."""
    host.paused = True
    host.answers["tokenize"] = lambda request: None
    model = client.model("tiny")
    interrupt = threading.Thread(
        target=lambda: (host.wait_for(kind), signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    )
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        if kind == "infer":
            model.complete("hello")
        else:
            model.tokenize("hello")
    interrupt.join(20)
    if kind == "infer":
        host.wait_for("cancel")
    assert client._thread.run(lambda: client._connection.num_open) == 0


def test_many_threads_share_a_client(client):
    model, results = client.model("tiny"), {}

    def ask(n):
        results[n] = model.complete(f"prompt {n}", max_tokens=30).generated

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {n: expected_ids(packed(f"prompt {n}"), 30) for n in range(16)}


def test_a_wrong_protocol_version_is_told(host, monkeypatch):
    monkeypatch.setattr("tests.support.fake_host.PROTOCOL_VERSION", 99)
    client = Client(host.endpoint)
    with pytest.raises(Exception, match="protocol version 99"):
        client.hello()
    client.close()
