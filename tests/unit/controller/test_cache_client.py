"""The controller's line to a cache daemon that dies."""

import asyncio

import pytest
import zmq

from erllama_host.controller.cache_client import CacheClient
from erllama_host.errors import HostUnavailable
from erllama_host.transport.sockets import router


async def sent(client: CacheClient) -> "asyncio.Task[dict]":
    """A question that is under way: before there is a connection, each fails at its first step."""
    while True:
        question = asyncio.create_task(client.call("stats", timeout_s=1e6))
        await asyncio.sleep(0.01)
        if not question.done():
            return question
        assert isinstance(question.exception(), HostUnavailable)


async def test_what_a_dead_daemon_was_asked_fails_at_once(tmp_path_factory):
    endpoint = f"ipc://{tmp_path_factory.mktemp('c')}/c.sock"
    theirs, ours = zmq.Context(), zmq.Context()
    daemon = router(theirs)
    daemon.bind(endpoint)
    client = CacheClient(ours, endpoint)
    client.start()
    question = await sent(client)
    assert await asyncio.to_thread(daemon.poll, 20_000)
    theirs.destroy(linger=0)
    with pytest.raises(HostUnavailable, match="before it answered"):
        await question
    client.close()
    ours.destroy(linger=0)
