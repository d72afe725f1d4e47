"""The engine on every kind of state llama.cpp has: what one life stores, the next restores, and says the same.

Windows are passed on purpose: 64 tokens wide, rows of more than 200. The models are tiny and random.
"""

import pytest

from erllama_host.config.model import ModelConfig, ModelSpec
from erllama_host.errors import NotSupported
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import AdapterUse, pack_tokens
from tests.support import ggufs
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from workers.backend.values import KvMode
from workers.commands import EmbedTexts

pytestmark = pytest.mark.model

BLOCK = 32
PROMPT = "a row of words that goes on for longer than the window of the model is wide, " * 2 + "and then some more"
MODELS = [
    ("attention", {}, KvMode.SEGMENTS),
    ("window", {"swa_full": True}, KvMode.SEGMENTS),
    ("window", {"swa_full": False}, KvMode.SEGMENTS),
    ("mamba", {}, KvMode.SNAPSHOTS),
    ("jamba", {}, KvMode.SNAPSHOTS),
    ("lfm2", {}, KvMode.SNAPSHOTS),
]
IDS = ["attention", "window-full", "window-moving", "mamba", "jamba", "lfm2"]


def engine(store, kind, **config):
    options = {"n_ctx": 512, "n_cells": 1024, "n_threads": 1, "n_threads_batch": 1, "n_batch": 128, **config}
    spec = ModelSpec(
        model_id="m",
        load_id="1",
        config=ModelConfig(path=str(ggufs.tiny(kind)), **options),
        cache={"block_tokens": BLOCK},
    )
    return Harness(store=store.make if store else None, spec=spec)


@pytest.mark.parametrize(("kind", "config", "mode"), MODELS, ids=IDS)
def test_the_next_life_goes_on_where_the_last_one_ended(kind, config, mode):
    store = MemoryStore(BLOCK)
    first = engine(store, kind, **config)
    assert first.ready.kv_mode is mode, first.ready.kv_reason
    cold = first.run(PROMPT, max_tokens=60, ignore_eos=True)
    first.settle()
    row = first.tokens(PROMPT) + list(cold.generated)
    longer = first.run([*row, *first.tokens(" go on")[1:]], max_tokens=8, ignore_eos=True)
    first.close()

    second = engine(store, kind, **config)
    again = second.run(PROMPT, max_tokens=60, ignore_eos=True)
    second.settle()
    assert again.cache.kind == "exact" and again.stats.prefilled_tokens == 0
    assert again.generated == cold.generated
    second.close()

    third = engine(store, kind, **config)
    end = third.run([*row, *third.tokens(" go on")[1:]], max_tokens=8, ignore_eos=True)
    assert end.cache.kind in ("partial", "exact") and end.cache.read_tokens >= len(row) - 1
    assert end.generated == longer.generated
    third.settle()
    assert third.drift() == [] and store.num_leases == store.num_open == 0
    third.close()


@pytest.mark.parametrize(("kind", "config", "mode"), MODELS, ids=IDS)
def test_a_stream_whose_worker_died_goes_on_from_its_last_blocks(kind, config, mode):
    store = MemoryStore(BLOCK)
    first = engine(store, kind, **config)
    whole = first.run(PROMPT, max_tokens=80, ignore_eos=True)
    first.settle()
    first.close()
    second = engine(store, kind, **config)
    delivered = whole.generated[:50]
    end = second.run(PROMPT, max_tokens=80, ignore_eos=True, delivered=delivered, attempt=1)
    row_len = len(second.tokens(PROMPT)) + 50
    assert end.cache.read_tokens >= row_len // BLOCK * BLOCK - BLOCK
    assert end.generated[:50] == delivered and len(end.generated) == 80
    assert second.drift() == []
    second.close()


@pytest.mark.parametrize(("kind", "config", "mode"), MODELS, ids=IDS)
def test_branches_share_what_they_have_in_common(kind, config, mode):
    harness = engine(None, kind, n_seq_max=3, **config)
    prompts = [harness.tokens(PROMPT + tail) for tail in (" one way", " another way", " a third way")]
    refs = [harness.submit(prompt, max_tokens=10, ignore_eos=True) for prompt in prompts]
    harness.finish(*refs)
    assert all(len(harness.end_of(ref).generated) == 10 for ref in refs)
    if config.get("swa_full", True):
        prefilled = sum(harness.end_of(ref).stats.prefilled_tokens for ref in refs)
        assert prefilled < len(prompts[0]) + 3 * 20, "the common part is computed once"
    assert harness.drift() == []
    harness.close()


def test_real_adapters_change_answers_return_exactly_and_never_share_kv():
    store = MemoryStore(BLOCK)
    harness = engine(store, "attention")
    plain = harness.run(PROMPT, max_tokens=12, ignore_eos=True)
    info = harness.call("load_adapter", c.LoadAdapter(path=str(ggufs.tiny("lora")), scale=4.0))
    with_one = harness.run(PROMPT, max_tokens=12, ignore_eos=True)
    assert with_one.cache.kind == "cold" and with_one.generated != plain.generated
    both = [
        harness.submit(PROMPT, max_tokens=12, ignore_eos=True, adapters=uses)
        for uses in ((), (AdapterUse(info.handle, 4.0),), ())
    ]
    harness.finish(*both)
    assert [harness.end_of(ref).generated for ref in both] == [plain.generated, with_one.generated, plain.generated]
    harness.call("unload_adapter", c.UnloadAdapter(handle=info.handle))
    back = harness.run(PROMPT, max_tokens=12, ignore_eos=True)
    assert back.generated == plain.generated and back.cache.kind in ("live", "exact")
    harness.settle()
    assert len({stored.meta.root for stored in store.stored.values()}) == 2
    assert harness.drift() == []
    harness.close()

    later = engine(store, "attention")
    later.call("load_adapter", c.LoadAdapter(path=str(ggufs.tiny("lora")), scale=4.0))
    again = later.run(PROMPT, max_tokens=12, ignore_eos=True)
    assert again.cache.kind == "exact" and again.generated == with_one.generated
    later.close()


def test_an_embedding_model_embeds_and_refuses_the_rest():
    harness = engine(None, "embedding", n_ctx=256)
    texts = [pack_tokens([1, 5, 6, 7]), pack_tokens([1, 9])]
    result = harness.call("embed", EmbedTexts(texts))
    assert len(result.vectors) == 2 and len(result.vectors[0]) == 4 * result.n_embd
    assert isinstance(harness.run([1, 5, 6]).error, NotSupported)
    with pytest.raises(NotSupported):
        harness.call("verify", c.Verify(tokens=texts[0], draft=texts[1]))
    assert harness.call("evict", c.Evict()).deferred is False
    assert harness.call("embed", EmbedTexts(texts)).vectors == result.vectors
    harness.close()
