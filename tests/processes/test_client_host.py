"""The client library against real hosts with the stub: streams outlive their worker, the controller, the daemon, circusd."""

import asyncio
import os
import signal
import threading
from contextlib import AsyncExitStack

import pytest

from erllama_host import AsyncClient, Client
from erllama_host.errors import ModelFailed, ModelLoadFailed, QueueFull, WorkerDied
from tests.support.hosts import eventually, running_host

pytestmark = pytest.mark.process

SLOW = {"token_ms": 10.0}


@pytest.fixture(scope="module")
def host():
    """One host for all but what ends it: its models and clients are made anew by every test."""
    with running_host() as running:
        yield running


@pytest.fixture
def client(host):
    with Client(host.endpoint) as made:
        yield made
        for info in made.list_models():
            made.unload(info.model_id)


def load(client, stub=None, **options):
    """A model of the stub named `tiny`, 10 ms per token."""
    return client.load_model(model_id="tiny", backend="stub", stub={**SLOW, **(stub or {})}, **options)


def kill(pid):
    assert pid > 0
    os.kill(pid, signal.SIGKILL)


def test_streams_outlive_the_worker_the_controller_and_the_cache_daemon(host, client):
    model = load(client)
    undisturbed = model.complete("a long prompt " * 30, max_tokens=200)
    for name in ("model:tiny", "controller", "cache"):
        victim = host.pid_of(name)
        with model.infer("a long prompt " * 30, max_tokens=200) as stream:
            pieces = [next(stream), next(stream)]
            kill(victim)
            pieces += list(stream)
        assert "".join(p.text for p in pieces) == undisturbed.text, name
        assert [t for p in pieces for t in p.token_ids] == undisturbed.generated, name
        assert [p.seq for p in pieces] == sorted(p.seq for p in pieces), name
        assert stream.stats.generated_tokens == 200
        if name == "model:tiny":
            assert stream.stats.resumes >= 1


def test_queued_requests_outlive_the_worker_too(client):
    model = load(client)
    expected = [model.complete(f"prompt {n}", max_tokens=20).text for n in range(12)]
    victim = client.models()["tiny"][0]
    streams = [model.infer(f"prompt {n}", max_tokens=20) for n in range(12)]
    next(streams[0])
    kill(victim)
    assert [stream.result().text for stream in streams] == expected


def test_everything_comes_back_after_circusd_is_killed():
    with running_host(detach=True) as host, Client(host.endpoint) as client:
        model = load(client)
        undisturbed = model.complete("hello", max_tokens=150)
        victim = host.pid_of("circusd")
        with model.infer("hello", max_tokens=150) as stream:
            next(stream)
            kill(victim)
            assert stream.result().text == undisturbed.text
        assert eventually(lambda: model.status() == "idle", "the model is back")


def test_a_request_that_kills_its_worker_ends_as_poison(client):
    model = load(client, {"crash_on_text": "poison"})
    with pytest.raises(WorkerDied) as caught:
        model.complete("this is poison", max_tokens=5)
    assert caught.value.details["poison"] is True
    assert len(model.complete("this is not", max_tokens=5).generated) == 5


def test_max_resumes_0_reports_the_death(client):
    model = load(client)
    victim = client.models()["tiny"][0]
    stream = model.infer("hello", max_tokens=2000, max_resumes=0)
    next(stream)
    kill(victim)
    with pytest.raises(WorkerDied):
        list(stream)


def test_unload_ends_streams_with_that_reason(client):
    model = load(client)
    with model.infer("hello", max_tokens=2000) as stream:
        next(stream)
        unloading = threading.Thread(target=model.unload)
        unloading.start()
        list(stream)
        unloading.join(60)
    assert (stream.stats.cancelled, stream.stats.cancel_reason) == (True, "unload")
    assert client.list_models() == []


def test_a_failing_load_says_why_and_progress_is_told(client):
    with pytest.raises(ModelLoadFailed, match="the stub will not"):
        client.load_model(model_id="bad", backend="stub", stub={"fail_load": "the stub will not"})
    seen = []
    model = client.load_model(
        backend="stub", stub={"load_ms": 200.0}, on_progress=lambda event: seen.append(event.fraction)
    )
    assert model.model_id.startswith("erllama_model_")
    assert seen
    assert seen == sorted(seen)


@pytest.mark.parametrize("model_id", ["slow", None])
def test_a_load_outlives_the_controller_and_happens_once(host, client, model_id):
    started = threading.Event()

    def strike():
        assert started.wait(60)
        kill(host.pid_of("controller"))

    killer = threading.Thread(target=strike)
    killer.start()
    model = client.load_model(
        model_id=model_id, backend="stub", stub={"load_ms": 1500.0}, on_progress=lambda _: started.set()
    )
    killer.join(60)
    assert [info.model_id for info in client.list_models()] == [model.model_id]
    assert len(model.complete("hello", max_tokens=5).generated) == 5


async def ask_all(endpoint, num_clients, num_requests):
    """Every client asks `num_requests` times at once; answers by prompt, and how many were refused."""
    answers, refused = {}, 0

    async def ask(client, prompt):
        nonlocal refused
        try:
            answers[prompt] = (await client.model("tiny").complete(prompt, max_tokens=4)).text
        except QueueFull as error:
            assert error.retry_after_s
            refused += 1

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(endpoint)) for _ in range(num_clients)]
        await asyncio.gather(*(ask(c, f"{n} {k}") for n, c in enumerate(clients) for k in range(num_requests)))
    return answers, refused


def test_many_clients_at_once_are_answered_or_told_that_the_queue_is_full(host, client):
    model = client.load_model(model_id="tiny", backend="stub", max_queue=300)
    answers, refused = asyncio.run(ask_all(host.endpoint, num_clients=50, num_requests=20))
    assert len(answers) + refused == 1000
    assert len(answers) >= 300
    some = list(answers)[::50]
    assert [model.complete(prompt, max_tokens=4).text for prompt in some] == [answers[p] for p in some]
    eventually(lambda: model.pending_len() == 0, "nothing is pending any more")


def test_a_model_that_is_given_up_fails_what_waits_for_it_and_restart_clears_it(client):
    model = load(client, {"crash_on_text": "boom"}, max_restarts=1, within_s=600.0)
    with pytest.raises((ModelFailed, WorkerDied)):
        model.complete("boom", max_tokens=5)
    eventually(lambda: model.info().status == "failed", "it is given up")
    with pytest.raises(ModelFailed):
        model.complete("hello", max_tokens=5)
    model.restart()
    assert len(model.complete("hello", max_tokens=5).generated) == 5


def test_a_slow_reader_slows_only_itself(client):
    model = client.load_model(model_id="tiny", backend="stub", n_ctx=8192)
    with model.infer("slow", max_tokens=4000) as slow:
        next(slow)
        assert len(model.complete("quick", max_tokens=300).generated) == 300
        assert len(slow.result().generated) == 4000
