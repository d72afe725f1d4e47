"""Fingerprints of model files, what is remembered of them, and the key spaces made from them."""

import gc
import hashlib
import json
import os

import pytest

from erllama_host.config.model import ModelConfig, StubConfig
from erllama_host.errors import ConfigError, ModelLoadFailed
from erllama_host.kv.keys import ContextShape, KeySpace
from tests.support.backends import open_stub_backend
from workers.backend.values import KvMode, SelfCheck
from workers.fingerprint import model_fingerprint, remember_mode, remembered_mode
from workers.namespace import Namespace, context_hash


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + os.urandom(3 << 20))
    return path


def test_safe_is_the_sha256_of_the_file_and_is_remembered_until_the_file_changes(model, tmp_path):
    config = ModelConfig(path=str(model))
    truth = hashlib.sha256(model.read_bytes()).digest()
    assert model_fingerprint(config, tmp_path) == truth
    memory = tmp_path / "fingerprints.json"
    entries = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(entries, "ab" * 32)))
    assert model_fingerprint(config, tmp_path) == bytes.fromhex("ab" * 32), "the second time nothing is hashed"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    os.utime(model, ns=(1, 1))
    assert model_fingerprint(config, tmp_path) == hashlib.sha256(content).digest()
    assert model_fingerprint(config, None) == hashlib.sha256(content).digest()


def test_chunked_sees_the_header_the_size_and_samples(model):
    config = ModelConfig(path=str(model), fingerprint_mode="gguf_chunked")
    first = model_fingerprint(config, None)
    assert first == model_fingerprint(config, None) != hashlib.sha256(model.read_bytes()).digest()
    with model.open("ab") as file:
        file.write(b"x")
    longer = model_fingerprint(config, None)
    with model.open("r+b") as file:
        file.seek(100)
        file.write(b"header")
    assert len({first, longer, model_fingerprint(config, None)}) == 3


@pytest.mark.parametrize("mode", ["safe", "gguf_chunked"])
def test_of_a_model_in_several_files_each_counts(tmp_path, mode):
    prints = set()
    for name, parts in {"a": ("1", "2"), "b": ("1", "other"), "c": ("other", "2"), "d": ("2", "1")}.items():
        (tmp_path / name).mkdir()
        for number, content in enumerate(parts, 1):
            (tmp_path / name / f"m-0000{number}-of-00002.gguf").write_text(f"GGUF {content}")
        first = tmp_path / name / "m-00001-of-00002.gguf"
        prints.add(model_fingerprint(ModelConfig(path=str(first), fingerprint_mode=mode), tmp_path))
    assert len(prints) == 4
    (tmp_path / "a" / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelLoadFailed, match=r"m-00002-of-00002\.gguf"):
        model_fingerprint(ModelConfig(path=str(tmp_path / "a" / "m-00001-of-00002.gguf"), fingerprint_mode=mode), None)


def test_a_model_in_one_file_is_known_by_that_file_alone(model):
    alone = model.with_name("m-00001-of-00001.gguf")
    model.rename(alone)
    config = ModelConfig(path=str(alone))
    assert model_fingerprint(config, None) == hashlib.sha256(alone.read_bytes()).digest()


def test_fast_unsafe_believes_the_caller_and_needs_64_digits():
    claimed = ModelConfig(path="/nowhere", fingerprint_mode="fast_unsafe", fingerprint="cd" * 32)
    assert model_fingerprint(claimed, None) == bytes.fromhex("cd" * 32)
    for wrong in (None, "", "zz" * 32, "cd" * 31):
        with pytest.raises(ConfigError):
            model_fingerprint(ModelConfig(path="x", fingerprint_mode="fast_unsafe", fingerprint=wrong), None)


@pytest.mark.parametrize("mode", ["safe", "gguf_chunked"])
def test_an_unreadable_file_is_a_failed_load(tmp_path, mode):
    with pytest.raises(ModelLoadFailed, match="cannot read"):
        model_fingerprint(ModelConfig(path=str(tmp_path / "none.gguf"), fingerprint_mode=mode), tmp_path)


def test_stubs_of_different_behaviour_have_different_fingerprints():
    stubs = [StubConfig(), StubConfig(salt=1), StubConfig(emit="x"), StubConfig(kind="recurrent")]
    prints = {model_fingerprint(ModelConfig(backend="stub", stub=stub), None) for stub in stubs}
    assert len(prints) == 4


def test_verdicts_are_remembered_per_namespace_but_failures_are_not(tmp_path):
    remember_mode(tmp_path, bytes(32), SelfCheck(KvMode.SEGMENTS, "fine", 1.0))
    remember_mode(tmp_path, b"\1" * 32, SelfCheck(KvMode.UNCACHED, "broken", 1.0))
    assert remembered_mode(tmp_path, bytes(32)) is KvMode.SEGMENTS
    assert remembered_mode(tmp_path, b"\1" * 32) is None and remembered_mode(None, bytes(32)) is None


def test_memories_keep_the_newest_entries(tmp_path):
    for number in range(600):
        if number % 100 == 0 or number > 590:
            remember_mode(tmp_path, number.to_bytes(32, "big"), SelfCheck(KvMode.SNAPSHOTS, "fine", 1.0))
    entries = json.loads((tmp_path / "self-checks.json").read_text())
    assert 0 < len(entries) <= 512 and list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("obstacle", ["no directory", "full"])
def test_where_nothing_can_be_remembered_everything_works_all_the_same(model, tmp_path, obstacle):
    home = tmp_path / "home"
    if obstacle == "no directory":
        home.write_text("not one")
    else:
        home.mkdir()
        for name in ("fingerprints", "self-checks"):
            (home / f"{name}.{os.getpid()}.tmp").symlink_to("/dev/full")
    truth = hashlib.sha256(model.read_bytes()).digest()
    assert model_fingerprint(ModelConfig(path=str(model)), home) == truth
    remember_mode(home, bytes(32), SelfCheck(KvMode.SEGMENTS, "fine", 1.0))
    assert remembered_mode(home, bytes(32)) is None
    assert obstacle == "no directory" or list(home.iterdir()) == []


def test_key_spaces_differ_by_model_adapters_scale_quantisation_and_context():
    shape = open_stub_backend().kv_shape
    base = Namespace(bytes(32), "Q4_K_M", context_hash(None, shape))
    assert base.space([]) is base.space([]) and base.root == base.space([]).root
    sha = b"\7" * 32
    roots = {
        base.root,
        base.space([(sha, 1.0)]).root,
        base.space([(sha, 0.5)]).root,
        Namespace(b"\1" * 32, "Q4_K_M", context_hash(None, shape)).root,
        Namespace(bytes(32), "Q8_0", context_hash(None, shape)).root,
        Namespace(bytes(32), "Q4_K_M", context_hash("ee" * 32, shape)).root,
    }
    assert len(roots) == 6
    assert isinstance(shape, ContextShape)


def test_scales_that_differ_with_every_request_are_not_kept_for_ever():
    base = Namespace(bytes(32), "Q4_K_M", bytes(32))
    first = base.space([(b"\7" * 32, 1.0)])
    for number in range(2000):
        base.space([(b"\7" * 32, 1.0 + number / 1000)])
    assert sum(isinstance(one, KeySpace) for one in gc.get_objects()) < 500
    assert base.space([(b"\7" * 32, 1.0)]) == first
