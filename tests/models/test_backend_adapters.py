"""LoRA adapters and embeddings on real llama.cpp."""

import threading

import numpy as np
import pytest

from erllama_host.errors import InvalidRequest, NoMemory, NotSupported
from tests.support import ggufs, models
from tests.support.backends import Blob, feed, open_gguf_backend, rows_of, some_tokens
from workers.backend.base import DecodeStatus, KvMode

pytestmark = pytest.mark.model


@pytest.fixture
def tiny():
    backend = open_gguf_backend(ggufs.tiny("attention"))
    yield backend
    backend.close()


def logits_of(backend, tokens):
    backend.clear(0)
    return feed(backend, 0, tokens)


def test_an_adapter_changes_logits_and_detaching_returns_them_exactly(tiny):
    tokens = some_tokens(tiny, 20)
    plain = logits_of(tiny, tokens)
    handle, other = (tiny.load_adapter(str(ggufs.tiny(name))) for name in ("lora", "lora2"))
    assert np.array_equal(plain, logits_of(tiny, tokens)), "loading alone changes nothing"
    tiny.attach([(handle, 1.0)])
    adapted = logits_of(tiny, tokens)
    tiny.attach([(handle, 0.5)])
    half = logits_of(tiny, tokens)
    tiny.attach([(other, 1.0), (handle, 1.0)])
    both = logits_of(tiny, tokens)
    tiny.attach([(handle, 1.0), (other, 1.0)])
    assert np.array_equal(both, logits_of(tiny, tokens)), "the order of a set means nothing"
    rows = [plain, adapted, half, both]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(rows) for b in rows[:i])
    for nothing in ([(handle, 0.0)], []):
        tiny.attach(nothing)
        assert np.array_equal(plain, logits_of(tiny, tokens))
    tiny.free_adapter(handle)
    tiny.free_adapter(other)
    assert np.array_equal(plain, logits_of(tiny, tokens))


def test_a_smollm2_adapter_works():
    backend = open_gguf_backend(models.smollm2(), n_ctx=256, n_cells=512)
    tokens = backend.vocabulary.tokenize("The capital of Italy is")
    plain = logits_of(backend, tokens)
    handle = backend.load_adapter(str(ggufs.smollm2_lora()))
    backend.attach([(handle, 1.0)])
    assert np.abs(plain - logits_of(backend, tokens)).max() > 0.1
    backend.attach([])
    assert np.array_equal(plain, logits_of(backend, tokens))
    backend.close()


def test_kv_made_under_an_adapter_is_other_kv(tiny):
    tokens = some_tokens(tiny, 20)
    feed(tiny, 0, tokens)
    plain = Blob(tiny, 0, 0, 20)
    handle = tiny.load_adapter(str(ggufs.tiny("lora")))
    tiny.attach([(handle, 1.0)])
    tiny.clear(0)
    feed(tiny, 0, tokens)
    assert bytes(Blob(tiny, 0, 0, 20).buffer) != bytes(plain.buffer)
    tiny.attach([])
    tiny.clear(0)
    feed(tiny, 0, tokens)
    assert bytes(Blob(tiny, 0, 0, 20).buffer) == bytes(plain.buffer)


def test_an_attached_set_survives_a_dropped_context(tiny):
    tokens = some_tokens(tiny, 20)
    handle = tiny.load_adapter(str(ggufs.tiny("lora")))
    tiny.attach([(handle, 1.0)])
    adapted = logits_of(tiny, tokens)
    tiny.drop_context()
    assert np.array_equal(adapted, logits_of(tiny, tokens))


def test_an_attached_adapter_cannot_be_freed(tiny):
    handle = tiny.load_adapter(str(ggufs.tiny("lora")))
    tiny.attach([(handle, 1.0)])
    with pytest.raises(AssertionError):
        tiny.free_adapter(handle)


@pytest.mark.parametrize(
    "make",
    [
        ggufs.smollm2_lora,
        lambda: ggufs.tiny("attention"),
        lambda: ggufs.truncated(ggufs.tiny("lora"), 0.6),
        lambda: ggufs.flipped(ggufs.tiny("lora"), 0),
        ggufs.empty_file,
        lambda: ggufs.scratch_path("x").parent,
    ],
    ids=["other-model", "model", "truncated", "flipped", "empty", "directory"],
)
def test_files_that_are_no_adapter_of_this_model_are_refused(tiny, make):
    with pytest.raises(InvalidRequest, match="cannot load adapter") as caught:
        tiny.load_adapter(str(make()))
    assert caught.value.details["field"] == "path"
    assert np.isfinite(logits_of(tiny, some_tokens(tiny, 5))).all()


# --- embeddings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def embedder():
    backend = open_gguf_backend(ggufs.tiny("embedding"), n_ctx=512)
    yield backend
    backend.close()


def cosine(left, right):
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def test_an_embedding_model_says_what_it_is(embedder):
    assert embedder.info.is_embedding_model and embedder.info.pooling == "mean"
    assert not embedder.has_context and embedder.self_check().mode is KvMode.UNCACHED
    with pytest.raises(AssertionError):
        feed(embedder, 0, [5])


@pytest.mark.parametrize("kind", ["embedding", "attention"])
def test_texts_embed_alike_together_and_alone(kind):
    backend = open_gguf_backend(ggufs.tiny(kind), n_ubatch=128)
    texts = [backend.vocabulary.tokenize(text) for text in ("one", "two words", "a third and longer text") * 10]
    together = backend.embed(texts, normalize=True)
    alone = [backend.embed([ids], normalize=True)[0] for ids in texts]
    assert len(together) == 30 and all(vector.shape == (backend.info.n_embd,) for vector in together)
    assert all(cosine(a, b) > 0.9999 for a, b in zip(together, alone, strict=True))
    assert cosine(together[0], together[2]) < 0.999
    assert np.allclose([np.linalg.norm(vector) for vector in together], 1.0, atol=1e-5)
    raw = backend.embed(texts[:1], normalize=False)[0]
    assert cosine(raw, together[0]) > 0.9999 and abs(np.linalg.norm(raw) - 1) > 1e-3
    assert backend.embed([], normalize=True) == []
    backend.close()


def test_a_text_of_the_full_length_is_pooled_whole(tiny):
    most = tiny.limits.max_embed_tokens
    ids = some_tokens(tiny, most)
    changed = [ids[0] + 1, *ids[1:]]
    vectors = tiny.embed([ids, changed], normalize=True)
    assert not np.array_equal(vectors[0], vectors[1]), "the first token counts"


def test_embedding_leaves_running_sequences_alone(tiny):
    tokens = some_tokens(tiny, 20)
    feed(tiny, 0, tokens)
    expected = feed(tiny, 0, [9])
    tiny.clear(0)
    feed(tiny, 0, tokens)
    tiny.embed([some_tokens(tiny, 50)], normalize=True)
    assert np.array_equal(expected, feed(tiny, 0, [9]))


def test_embedding_follows_the_attached_adapters(tiny):
    ids = some_tokens(tiny, 10)
    plain = tiny.embed([ids], normalize=True)[0]
    handle = tiny.load_adapter(str(ggufs.tiny("lora")))
    tiny.attach([(handle, 1.0)])
    assert not np.array_equal(plain, tiny.embed([ids], normalize=True)[0])
    tiny.attach([])
    tiny.free_adapter(handle)
    assert np.array_equal(plain, tiny.embed([ids], normalize=True)[0])


def test_pooling_that_makes_no_vector_is_not_supported():
    backend = open_gguf_backend(ggufs.tiny("attention"), pooling="none")
    with pytest.raises(NotSupported, match="pooling"):
        backend.embed([[5]], normalize=True)
    backend.close()


# --- stopping -------------------------------------------------------------------------------------------------------


def test_a_long_decode_is_stopped_from_another_thread():
    backend = open_gguf_backend(models.smollm2(), n_ctx=2048, n_cells=2048, n_batch=2048)
    tokens = some_tokens(backend, 2000)
    feed(backend, 0, tokens[:20])
    timer = threading.Timer(0.05, backend.abort)
    timer.start()
    # Whether the abort comes before or during the decode: on one thread these rows take many seconds.
    assert backend.decode(rows_of((0, 20, tokens[20:]))) is DecodeStatus.ABORTED
    timer.join()
    backend.clear_abort()
    assert backend.length(0) == 20
    assert np.isfinite(feed(backend, 0, tokens[20:24])).all()
    backend.close()


def test_no_room_for_the_context_that_embeds_is_no_end_of_the_one_that_generates(monkeypatch):
    backend = open_gguf_backend(ggufs.tiny("attention"))
    before = feed(backend, 0, [5, 6, 7])
    with monkeypatch.context() as context:
        context.setattr("workers.backend.llama.loading.lib.llama_init_from_model", lambda model, params: None)
        with pytest.raises(NoMemory, match="embed"):
            backend.embed([[5, 6]], normalize=True)
    backend.clear(0)
    assert np.array_equal(feed(backend, 0, [5, 6, 7]), before)
    assert len(backend.embed([[5, 6]], normalize=True)) == 1
    backend.close()
