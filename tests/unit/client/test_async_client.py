"""`AsyncClient`: the same methods, on the caller's loop; cancelled tasks, dropped streams, closed loops."""

import asyncio
import gc
import inspect

import pytest

from erllama_host.client import AsyncClient, AsyncModel, AsyncStream, Client, Model, Patience, Stream
from erllama_host.errors import HostUnavailable
from erllama_host.protocol import calls as c
from tests.support.fake_host import FakeHost
from tests.support.fake_worker import expected_ids, is_valid_answer, text_of_all


@pytest.fixture
def host():
    with FakeHost() as fake:
        yield fake


def packed(text):
    return bytes(b for ch in text.encode() for b in (ch, 0, 0, 0))


async def seen(host, kind, count=1):
    return await asyncio.to_thread(host.wait_for, kind, count)


def public(cls):
    return {n: m for n, m in vars(cls).items() if not n.startswith("_") and callable(m)}


@pytest.mark.parametrize(("sync", "asynchronous"), [(Client, AsyncClient), (Model, AsyncModel), (Stream, AsyncStream)])
def test_both_faces_have_the_same_methods_with_the_same_parameters(sync, asynchronous):
    other = {name.removeprefix("a") if name == "aclose" else name: m for name, m in public(asynchronous).items()}
    assert public(sync).keys() == other.keys()
    for name, method in public(sync).items():
        assert _names(method) == _names(other[name]), name
        assert method.__doc__, name


def _names(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


async def test_calls_and_completions(host):
    async with AsyncClient(host.endpoint) as client:
        assert (await client.hello()).protocol == 1
        assert [m.model_id for m in await client.list_models()] == ["tiny"]
        model = await client.load_model("/x.gguf", model_id="tiny")
        assert await model.tokenize("hi") == [104, 105]
        assert await model.status() == "idle"
        assert await model.embed(["a"]) == [[1.0, 1.0]]
        done = await model.complete("hello", max_tokens=12)
        assert done.generated == expected_ids(packed("hello"), 12)
        assert done.text == text_of_all(done.generated)
        await client.cancel("tiny/" + "0" * 32)
        await model.unload()


async def test_progress_is_told(host):
    def load(request):
        host._send(request.peer, "progress", request.envelope.ref, "", c.LoadProgress(model_id="tiny", phase="loading"))
        return c.ModelInfo(model_id="tiny")

    host.answers["load_model"] = load
    phases = []
    async with AsyncClient(host.endpoint) as client:
        await client.load_model("/x", model_id="tiny", on_progress=lambda event: phases.append(event.phase))
    assert phases == ["loading"]


async def test_many_streams_share_one_loop(host):
    async with AsyncClient(host.endpoint) as client:
        model = client.model("tiny")

        async def ask(n):
            async with model.infer(f"prompt {n}", max_tokens=20) as stream:
                return [token async for piece in stream for token in piece.token_ids]

        answers = await asyncio.gather(*(ask(n) for n in range(20)))
    assert answers == [expected_ids(packed(f"prompt {n}"), 20) for n in range(20)]


async def test_a_stream_survives_the_death_of_its_worker(host):
    host._pace_s = 0.005
    async with AsyncClient(host.endpoint) as client:
        stream = client.model("tiny").infer("hello", max_tokens=50)
        await anext(stream)
        await asyncio.to_thread(host.kill_worker)
        await asyncio.to_thread(host.respawn)
        done = await stream.result()
    assert len(done.generated) == 50
    assert is_valid_answer(packed("hello"), done.generated)
    assert done.resumes >= 1


async def test_leaving_early_and_dropping_cancel(host):
    host.paused = True
    async with AsyncClient(host.endpoint) as client:
        async with client.model("tiny").infer("hello") as left:
            await seen(host, "infer")
        dropped = client.model("tiny").infer("hello").ref
        gc.collect()
        refs = {r.envelope.ref for r in await seen(host, "cancel", 2)}
        assert refs == {left.ref, dropped}
        assert [piece async for piece in left] == []


async def test_a_cancelled_task_cancels_its_request(host):
    host.paused = True
    async with AsyncClient(host.endpoint) as client:
        task = asyncio.create_task(client.model("tiny").complete("hello"))
        await seen(host, "infer")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await seen(host, "cancel")
        assert client._connection.num_open == 0


async def test_a_cancelled_stream_ends_with_stats(host):
    host._pace_s = 0.01
    async with AsyncClient(host.endpoint) as client:
        stream = client.model("tiny").infer("hello", max_tokens=100_000)
        await anext(stream)
        stream.cancel()
        async for _ in stream:
            pass
        assert stream.stats.cancelled


async def test_closing_frees_who_reads_a_stream(host):
    host.paused = True
    async with AsyncClient(host.endpoint) as client:
        stream = client.model("tiny").infer("hello")

        async def read():
            return [piece async for piece in stream]

        reader = asyncio.create_task(read())
        await seen(host, "infer")
        await stream.aclose()
        assert await asyncio.wait_for(reader, 20) == []
        second = client.model("tiny").infer("hello")
    with pytest.raises(HostUnavailable, match="closed"):
        await anext(second)
    with pytest.raises(RuntimeError, match="closed"):
        await client.hello()


async def test_two_readers_of_one_stream_are_refused(host):
    host.paused = True
    async with AsyncClient(host.endpoint) as client:
        stream = client.model("tiny").infer("hello")
        first = asyncio.create_task(anext(stream))
        await seen(host, "infer")
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await first


async def test_no_host(tmp_path):
    patience = Patience(connect_s=0.1)
    with pytest.raises(HostUnavailable, match="erllama up"):
        async with AsyncClient(f"ipc://{tmp_path}/no.sock", patience=patience):
            pass


@pytest.mark.parametrize("first", ["stream", "client"])
def test_a_loop_that_ends_with_a_stream_open_leaves_no_noise(host, first):
    """Nothing posts to a closed loop, whichever is collected first; warnings are errors here."""
    host.paused = True
    kept = {}

    async def leave_open():
        kept["client"] = AsyncClient(host.endpoint)
        kept["stream"] = kept["client"].model("tiny").infer("hello")
        await seen(host, "infer")

    asyncio.run(leave_open())
    connection = kept["client"]._connection
    del kept[first]
    gc.collect()
    kept.clear()
    gc.collect()
    assert connection.closed


async def test_a_client_that_is_dropped_closes_its_connection(host):
    client = AsyncClient(host.endpoint)
    await client.hello()
    connection = client._connection
    del client
    gc.collect()
    await asyncio.sleep(0)
    assert connection.closed


def test_a_client_belongs_to_one_loop(host):
    client = AsyncClient(host.endpoint)

    async def use():
        await client.hello()

    async def close():
        await client.aclose()

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(use())
    asyncio.run(close())
