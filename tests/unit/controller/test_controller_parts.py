"""Specs, footprints, memory sources, asks, roles and paths: the small parts of the controller."""

import json
import os

import msgspec
import pytest

from erllama_host.config import Config, ModelConfig, ModelSpec, Paths, SpecAdapter, read_specs
from erllama_host.controller import memory, specs
from erllama_host.controller.asks import Asks
from erllama_host.controller.footprints import Footprints
from erllama_host.controller.front import Request
from erllama_host.controller.lifecycle import Model
from erllama_host.controller.routing import check_role
from erllama_host.errors import (
    Forbidden,
    HostUnavailable,
    InvalidRequest,
    ModelLoadFailed,
    NoMemory,
    Timeout,
    WorkerDied,
)
from erllama_host.protocol import Envelope
from erllama_host.protocol.inference import ErrorBody
from erllama_host.protocol.kinds import HOST_KINDS, MODEL_KINDS
from erllama_host.transport.paths import check_allowed_path


@pytest.fixture
def paths(tmp_path):
    found = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    found.prepare()
    return found


def test_a_spec_is_all_a_worker_needs(paths):
    config = ModelConfig(backend="stub", n_ctx=512)
    model = Model("tiny", config, "load-1", adapters=[SpecAdapter(handle="a", path="/a")])
    specs.write_spec(paths, Config(), model)
    assert (paths.spec_file("tiny").stat().st_mode & 0o777) in (0o600, 0o644)
    spec = read_specs(paths)[0]
    assert isinstance(spec, ModelSpec)
    assert (spec.model_id, spec.load_id, spec.config.n_ctx, spec.home) == ("tiny", "load-1", 512, str(paths.home))
    assert spec.config.tier_srv == "ram" and spec.adapters == model.adapters
    (paths.run / "models" / "broken.json").write_text("{")
    assert len(read_specs(paths)) == 1


def test_the_watcher_carries_what_the_supervisor_needs(paths):
    config = ModelConfig(backend="stub", max_restarts=3, within_s=9.0, evict_save_timeout_s=7.0)
    options = specs.watcher_options(paths, Config(), Model("tiny", config, "x"))
    assert options["env"] == {"ERLLAMA_MAX_RESTARTS": "3", "ERLLAMA_WITHIN_S": "9.0"}
    assert options["graceful_timeout"] == 12.0
    assert options["stderr_stream"]["filename"] == str(paths.logs / "model-tiny.log")
    json.dumps(options)


def test_footprints_are_remembered_by_file_and_shape(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 1000)
    config = ModelConfig(path=str(file))
    footprints = Footprints(tmp_path / "footprints.json")
    assert footprints.needed_bytes(config) == 1000
    footprints.remember(config, 5000)
    footprints.remember(config, 4000)
    again = Footprints(tmp_path / "footprints.json")
    assert again.needed_bytes(config) == 5000
    assert again.needed_bytes(msgspec.structs.replace(config, n_ctx=99)) == 1000
    file.write_bytes(b"x" * 2000)
    assert again.needed_bytes(config) == 2000
    (tmp_path / "footprints.json").write_text("nonsense")
    assert Footprints(tmp_path / "footprints.json").needed_bytes(config) == 2000
    assert footprints.needed_bytes(ModelConfig(backend="stub")) == 0


def test_memory_of_a_cgroup(tmp_path):
    assert memory.cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 120\n")
    assert memory.cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    found = memory.cgroup(tmp_path)
    assert (found.total_bytes, found.used_bytes) == (1000, 380)
    assert memory.num_oom_kills(tmp_path) == 0
    (tmp_path / "memory.events").write_text("low 0\noom_kill 3\n")
    assert memory.num_oom_kills(tmp_path) == 3


def test_memory_sources(tmp_path):
    whole = memory.memory_source(None)()[0]
    assert 0 < whole.used_bytes < whole.total_bytes
    file = tmp_path / "memory.json"
    source = memory.memory_source(str(file))
    assert source() == []
    file.write_text('[{"total_bytes": 10, "used_bytes": 4, "name": "gpu0"}]')
    assert source()[0].share == 0.4
    file.write_text("[{")
    assert source() == []


async def test_asks():
    asks, sent = Asks(), []

    def answer(kind: str, body: bytes):
        def send(ref: str) -> bool:
            sent.append(ref)
            asks.answered(ref, kind, body)
            return True

        return send

    assert await asks.ask(answer("reply", b"yes"), 5, "peer") == b"yes"
    error = msgspec.msgpack.encode(ErrorBody(code="NoMemory", message="full"))
    with pytest.raises(NoMemory, match="full"):
        await asks.ask(answer("error", error), 5, "peer")
    with pytest.raises(HostUnavailable, match="not connected"):
        await asks.ask(lambda ref: False, 5, "peer")
    with pytest.raises(Timeout, match="no answer"):
        await asks.ask(answer("progress", b""), 0.01, "peer")
    with pytest.raises(WorkerDied):
        await asks.ask(lambda ref: asks.give_up("tiny") or True, 5, "peer", group="tiny")
    asks.answered(sent[0], "reply", b"late")


def test_roles():
    for kinds in (HOST_KINDS, MODEL_KINDS):
        for name, kind in kinds.items():
            request = Request(b"r1", Envelope(1, name, "x"), b"", role="user", remote=True)
            if kind.role == "admin":
                with pytest.raises(Forbidden):
                    check_role(request)
            else:
                check_role(request)
            check_role(Request(b"l", request.envelope, b""))


def test_paths_of_remote_clients(tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "secret").write_text("x")
    (models / "link").symlink_to(tmp_path / "secret")
    check_allowed_path(str(models / "a.gguf"), [str(models)])
    for path in (tmp_path / "secret", models / ".." / "secret", models / "link", tmp_path / "models2" / "a"):
        with pytest.raises(Forbidden):
            check_allowed_path(str(path), [str(models)])
    with pytest.raises(Forbidden):
        check_allowed_path(str(models / "a.gguf"), [])


def test_what_cannot_be_a_model_is_refused_before_a_worker_starts(tmp_path):
    """A pipe in particular: opening it would wait for ever, and a few of those would stop the controller's file work."""
    text, pipe = tmp_path / "notes.txt", tmp_path / "pipe"
    text.write_text("hello")
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path / "gone.gguf", "does not exist"),
        (tmp_path, "is a directory"),
        (pipe, "is not a regular file"),
        (text, "is not a GGUF file"),
    ):
        with pytest.raises(ModelLoadFailed, match=words):
            specs.check_model_file(ModelConfig(path=str(path)))
    for path in ("relative.gguf", "/models/a\0b.gguf"):
        with pytest.raises(InvalidRequest):
            specs.check_model_file(ModelConfig(path=path))
