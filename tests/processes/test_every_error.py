"""Every error code of the documentation, brought about for real: by a host, its processes, or the want of them."""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from erllama_host import Client, errors
from erllama_host.client import Patience
from erllama_host.errors import ErllamaError, from_wire
from erllama_host.protocol import Envelope, encode_envelope
from tests.support.hosts import Host, eventually, running_host
from tests.support.wire import WireClient

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@dataclass
class World:
    """A host with a small stub, `tiny`, and one whose memory is only what a file says."""

    host: Host
    client: Client
    scratch: Path

    @property
    def tiny(self):
        return self.client.model("tiny")

    def wire(self) -> WireClient:
        return self.host.client()

    def load(self, model_id, stub=None, **options):
        return self.client.load_model(model_id=model_id, backend="stub", stub=stub or {}, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("errors")
    memory = scratch / "memory.json"
    memory.write_text('[{"total_bytes": 104857600, "used_bytes": 0}]')
    text = (
        f'[host]\nmemory_file = "{memory}"\n[models.lazy]\nbackend = "stub"\nlazy = true\nstub = {{ load_ms = 500 }}\n'
    )
    with running_host(text) as host, Client(host.endpoint) as client:
        world = World(host, client, scratch)
        world.load("tiny", n_ctx=512)
        yield world


def config_error(world):
    with world.wire() as wire:
        wire.call("load_model", {"model_id": "odd", "config": {"backend": "stub", "n_ctx": -1}})


def invalid_request(world):
    with world.wire() as wire:
        ref = wire.send("infer", {"text": "x", "params": {"top_p": 7.0}}, "tiny")
        wire.answer(ref)


def already_loaded(world):
    world.load("tiny")


def forbidden(world):
    """A stream is steered by the client that opened it, and by nobody else."""
    world.load("slow", {"token_ms": 20.0})
    with world.wire() as owner, world.wire() as other:
        ref = owner.send("infer", {"text": "x", "max_tokens": 400, "ignore_eos": True}, "slow")
        eventually(lambda: owner.receive()[0].kind == "tokens", "it runs")
        other.answer(other.send("resume", {"next_index": 0}, "slow", ref=ref))


def queue_full(world):
    narrow = world.load("narrow", {"token_ms": 50.0}, n_seq_max=1, max_queue=1)
    with narrow.infer("a", max_tokens=400, ignore_eos=True) as running, narrow.infer("b", max_tokens=1):
        next(running)
        narrow.complete("c", max_tokens=1)


def model_loading(world):
    with world.wire() as wire:
        wire.infer("lazy")


def session_busy(world):
    busy = world.load("busy", {"token_ms": 50.0})
    with busy.infer("a", max_tokens=400, ignore_eos=True, session_id="s") as running:
        next(running)
        busy.complete("b", max_tokens=1, session_id="s")


def no_memory(world):
    huge = world.scratch / "huge.gguf"
    with huge.open("wb") as file:
        file.write(b"GGUF")
        file.truncate(1 << 30)
    world.client.load_model(huge)


def worker_died(world):
    fragile = world.load("fragile", {"crash_on_text": "poison"})
    fragile.complete("poison", max_tokens=1, max_resumes=0)


def model_failed(world):
    hopeless = world.load("hopeless", max_restarts=0)
    os.kill(hopeless.info().pid, signal.SIGKILL)
    hopeless.complete("x", max_tokens=1)


def timeout(world):
    with Client(world.host.endpoint, timeout_s=0.5) as hasty:
        stopped = world.load("stopped").info().pid
        os.kill(stopped, signal.SIGSTOP)
        try:
            hasty.model("stopped").tokenize("hello")
        finally:
            os.kill(stopped, signal.SIGCONT)


def protocol_mismatch(world):
    with world.wire() as wire:
        wire.socket.send_multipart([encode_envelope(Envelope(99, "hello", "@host/" + "0" * 32)), b""])
        _, body = wire.receive()
        raise from_wire(body["code"], body["message"], body.get("details"))


def host_unavailable(world):
    with Client(f"ipc://{world.scratch}/nobody.sock", patience=Patience(connect_s=0.2)) as client:
        client.hello()


def model_load_failed(world):
    world.load("broken", {"fail_load": "no such tensor"})


def internal_error(world):
    """A disk that takes nothing: here a directory stands where the host keeps what should be loaded."""
    models = world.host.paths.models_file
    kept = models.rename(world.scratch / "models.json")
    models.mkdir()
    try:
        world.load(None)  # the number of its name must be written down first
    finally:
        models.rmdir()
        shutil.copy(kept, models)


CASES = {
    "ConfigError": config_error,
    "InvalidRequest": invalid_request,
    "ContextOverflow": lambda world: world.tiny.complete([65] * 600, max_tokens=1),
    "ModelNotLoaded": lambda world: world.client.model("nobody").complete("x"),
    "AlreadyLoaded": already_loaded,
    "NotSupported": lambda world: world.tiny.complete("x", json_schema="{}"),
    "AdapterNotFound": lambda world: world.tiny.set_adapter_scale("nothing", 1.0),
    "Forbidden": forbidden,
    "QueueFull": queue_full,
    "ModelLoading": model_loading,
    "SessionBusy": session_busy,
    "NoMemory": no_memory,
    "WorkerDied": worker_died,
    "ModelFailed": model_failed,
    "Timeout": timeout,
    "ProtocolMismatch": protocol_mismatch,
    "HostUnavailable": host_unavailable,
    "ModelLoadFailed": model_load_failed,
    "InternalError": internal_error,
}


@pytest.mark.parametrize("code", CASES)
def test_it_is_reached(world, code):
    with pytest.raises(ErllamaError) as caught:
        CASES[code](world)
    error = caught.value
    assert error.code == code, error.message
    assert error.retryable == errors.BY_CODE[code].retryable and error.message


def test_no_code_is_left_out():
    """Those that have kinds of their own below them are for `except` clauses; nothing is ever just that."""
    assert set(CASES) == {code for code, cls in errors.BY_CODE.items() if not cls.__subclasses__()}
