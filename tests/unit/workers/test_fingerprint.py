"""Fingerprints of model files, and what is remembered of them."""

import hashlib
import json
import os

import pytest

from erllama_host.config.model import ModelConfig, StubConfig
from erllama_host.errors import ConfigError, ModelLoadFailed
from workers import fingerprint
from workers.backend.values import KvMode, SelfCheck
from workers.fingerprint import model_fingerprint, remember_mode, remembered_mode


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + os.urandom(2 << 20))
    return path


def of(path, home=None, **options):
    return model_fingerprint(ModelConfig(path=str(path), **options), home)


def test_safe_is_the_sha256_of_the_file(model, tmp_path):
    assert of(model, tmp_path) == hashlib.sha256(model.read_bytes()).digest()


def test_an_unchanged_file_is_hashed_once(model, tmp_path, monkeypatch):
    first = of(model, tmp_path)
    monkeypatch.setattr(fingerprint, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert of(model, tmp_path) == first


@pytest.mark.parametrize("change", ["content", "mtime", "inode"])
def test_a_file_that_may_have_changed_is_hashed_again(model, tmp_path, change):
    of(model, tmp_path)
    status = model.stat()
    if change == "content":
        model.write_bytes(b"GGUF" + os.urandom(2 << 20))
    elif change == "mtime":
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        content = model.read_bytes()
        other = tmp_path / "other"
        other.write_bytes(content[:-1] + b"!")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(model)
    assert of(model, tmp_path) == hashlib.sha256(model.read_bytes()).digest()


def test_junk_in_the_memory_costs_a_hash_and_nothing_else(model, tmp_path):
    for junk in (b"{", b"[1]", b'{"x": 3}', b"\xff"):
        (tmp_path / "fingerprints.json").write_bytes(junk)
        assert of(model, tmp_path) == hashlib.sha256(model.read_bytes()).digest()
    assert json.loads((tmp_path / "fingerprints.json").read_text())


def test_chunked_sees_the_header_the_size_and_samples(model):
    def chunked():
        return of(model, fingerprint_mode="gguf_chunked")

    content = model.read_bytes()
    seen = {chunked()}
    for changed in (b"X" + content[1:], content[:-1] + b"!", content + b"!"):
        model.write_bytes(changed)
        seen.add(chunked())
    assert len(seen) == 4
    model.write_bytes(content)
    assert chunked() in seen


def test_fast_unsafe_trusts_the_caller(model):
    assert of(model, fingerprint_mode="fast_unsafe", fingerprint="ab" * 32) == b"\xab" * 32
    for claimed in (None, "xyz", "ab"):
        with pytest.raises(ConfigError):
            of(model, fingerprint_mode="fast_unsafe", fingerprint=claimed)


def test_a_missing_file_cannot_be_loaded(tmp_path):
    with pytest.raises(ModelLoadFailed, match="cannot read"):
        of(tmp_path / "none.gguf", tmp_path)


def test_stubs_that_answer_differently_have_different_fingerprints():
    def stub(**options):
        return model_fingerprint(ModelConfig(backend="stub", stub=StubConfig(**options)), None)

    assert len({stub(), stub(salt=1), stub(emit="x"), stub(kind="hybrid")}) == 4
    assert stub() == stub(token_ms=5.0)


def test_a_self_check_is_remembered_unless_it_failed(tmp_path):
    root = b"r" * 32
    assert remembered_mode(tmp_path, root) is None
    remember_mode(tmp_path, root, SelfCheck(KvMode.UNCACHED, "no", 1.0))
    assert remembered_mode(tmp_path, root) is None
    remember_mode(tmp_path, root, SelfCheck(KvMode.SEGMENTS, "ok", 1.0))
    assert remembered_mode(tmp_path, root) is KvMode.SEGMENTS
    assert remembered_mode(tmp_path, b"s" * 32) is None
