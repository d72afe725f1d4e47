"""Calls to the host, over a world of fakes: limits of time, and what a remote client may name."""

import asyncio
from types import SimpleNamespace

import pytest

from erllama_host.client import host_calls
from erllama_host.config import ModelConfig, parse_config
from erllama_host.controller.cache_client import CALL_TIMEOUT_S
from erllama_host.controller.calls import HostCalls, files_of
from erllama_host.controller.front import Request
from erllama_host.ids import new_ref
from erllama_host.protocol import Envelope, encode_body
from erllama_host.protocol.calls import CacheCall, LoadModel


class Front:
    """Keeps the answers by kind."""

    def __init__(self):
        self.replies, self.errors = [], []

    def reply(self, request, body, kind="reply"):
        self.replies.append(body)

    def refuse(self, request, error):
        self.errors.append(error.code)


class Cache:
    """Notes how long each call may take."""

    def __init__(self):
        self.limits = []

    async def call(self, op, arguments=None, timeout_s=CALL_TIMEOUT_S):
        self.limits.append(timeout_s)
        return {}


@pytest.fixture
def world():
    return SimpleNamespace(
        front=Front(), cache=Cache(), config=parse_config('[host]\nmodel_dirs = ["/models"]\n'), draining=False
    )


async def answered(world, kind, body, deadline_ms=0, remote=False):
    calls = HostCalls(world, None)
    envelope = Envelope(1, kind, new_ref(), "", deadline_ms)
    calls.take(Request(b"rx" if remote else b"lx", envelope, encode_body(body), remote=remote))
    await asyncio.gather(*calls._tasks)


async def test_the_daemon_has_as_long_as_the_client_waits(world):
    await answered(world, "cache", CacheCall(op="verify"), deadline_ms=3_600_000)
    await answered(world, "cache", CacheCall(op="stats"))
    assert world.cache.limits == [3600.0, CALL_TIMEOUT_S]
    assert host_calls.cache("verify", {}).timeout_s > host_calls.cache("gc", {}).timeout_s


@pytest.mark.parametrize(
    "body",
    [
        LoadModel(path="/etc/passwd"),
        LoadModel(path="/models/../etc/passwd"),
        LoadModel(path="/models/a\0b"),
        LoadModel(config={"backend": "stub", "stub": {"crash_once": "/etc/nologin"}}),
    ],
)
async def test_a_remote_client_reads_and_makes_files_where_models_are_only(world, body):
    await answered(world, "load_model", body, remote=True)
    assert world.front.errors == ["Forbidden"]


def test_what_a_load_opens():
    assert files_of(ModelConfig(path="/m.gguf")) == ["/m.gguf"]
    assert files_of(ModelConfig(backend="stub")) == []
