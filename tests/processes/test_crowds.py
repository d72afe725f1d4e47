"""Crowds that use the client library: five hundred at once, and callers who keep meeting a full queue while processes die."""

import asyncio
import os
import signal
import threading
import time
from collections import Counter

import psutil
import pytest

from erllama_host import AsyncClient, Client
from erllama_host.errors import QueueFull
from tests.support.hosts import eventually, running_host
from tests.support.limits import allow_many_descriptors

pytestmark = [pytest.mark.process, pytest.mark.timeout(600)]

CLIENTS, REQUESTS_EACH = 500, 10
THREADS, ANSWERS_EACH = 40, 50
MIB = 1 << 20


@pytest.fixture
def host():
    allow_many_descriptors()
    with running_host() as host:
        yield host


async def test_five_hundred_clients_queue_five_thousand_requests_and_each_is_answered(host):
    with host.client() as wire:
        wire.load_stub(
            "busy", token_ms=2.0, options={"max_queue": CLIENTS * REQUESTS_EACH, "n_seq_max": 8, "n_ctx": 128}
        )
    processes = [psutil.Process(host.pid_of(role)) for role in ("controller", "model:busy")]
    before = [process.memory_info().rss for process in processes]
    clients = [AsyncClient(host.endpoint) for _ in range(CLIENTS)]

    async def ask(client):
        done = await client.model("busy").complete("hello", max_tokens=4, ignore_eos=True)
        return tuple(done.generated), done.stats.finish_reason, done.stats.resumes

    answers = await asyncio.gather(*(ask(client) for client in clients for _ in range(REQUESTS_EACH)))
    grown = [process.memory_info().rss - rss for process, rss in zip(processes, before, strict=True)]
    await asyncio.gather(*(client.aclose() for client in clients))
    (((_, reason, _), count),) = Counter(answers).items()
    assert (reason, count) == ("length", CLIENTS * REQUESTS_EACH), Counter(answers)
    assert max(grown) < 100 * MIB, grown


@pytest.mark.parametrize("victims", [(), ("controller",), ("controller", "model:narrow"), ("cache", "model:narrow")])
def test_who_meets_a_full_queue_comes_through_in_the_end_whoever_dies_meanwhile(host, victims):
    """Forty threads on four clients, and room for four: most requests are refused. None may be forgotten."""
    clients = [Client(host.endpoint) for _ in range(4)]
    model = clients[0].load_model(
        model_id="narrow", backend="stub", max_queue=2, n_seq_max=2, stub={"token_ms": 1.0}, max_restarts=100
    )
    right = model.complete("hello", max_tokens=3, ignore_eos=True).generated
    answers: list[list[int]] = []
    half_way = threading.Event()

    def insist(client):
        for _ in range(ANSWERS_EACH):
            answers.append(until_there_is_room(client.model("narrow")))
            if len(answers) > THREADS * ANSWERS_EACH // 2:
                half_way.set()

    threads = [threading.Thread(target=insist, args=(clients[number % 4],)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for victim in victims:
        half_way.wait()
        pid = eventually(lambda victim=victim: host.pid_of(victim), f"{victim} runs")
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert Counter(map(tuple, answers)) == {tuple(right): THREADS * ANSWERS_EACH}


def until_there_is_room(model) -> list[int]:
    while True:
        try:
            return model.complete("hello", max_tokens=3, ignore_eos=True).generated
        except QueueFull as full:
            time.sleep(min(full.retry_after_s, 0.02))
