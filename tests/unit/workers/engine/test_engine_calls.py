"""Calls that the engine answers, on the stub: adapters, embeddings, verification, speculation, what it cannot do."""

import os

import numpy as np
import pytest

from erllama_host.config.model import ModelConfig, ModelSpec, SpecAdapter
from erllama_host.errors import (
    AdapterNotFound,
    ContextOverflow,
    InternalError,
    InvalidRequest,
    ModelLoading,
    SessionBusy,
    Timeout,
)
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import AdapterUse, SamplingParams, pack_tokens
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from workers.commands import EmbedTexts, EngineCall, Failed, Generated, Park
from workers.speculation import propose

PROMPT = "the quick brown fox jumps over the lazy dog, again and again, until it is tired"


@pytest.fixture
def loras(tmp_path):
    """Two adapter files, as far as the stub is concerned."""
    paths = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for path in paths:
        path.write_bytes(b"GGUF" + path.name.encode())
    return [str(path) for path in paths]


def load(harness, path, scale=1.0):
    return harness.call("load_adapter", c.LoadAdapter(path=path, scale=scale))


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_change_answers_and_return_exactly_after_unload(loras):
    harness = Harness()
    plain = harness.run(PROMPT, max_tokens=12)
    info = load(harness, loras[0])
    changed = harness.run(PROMPT, max_tokens=12)
    assert changed.generated != plain.generated and changed.cache.kind == "cold"
    assert harness.call("list_adapters").adapters == [info]
    harness.call("set_adapter_scale", c.SetAdapterScale(handle=info.handle, scale=0.5))
    assert harness.run(PROMPT, max_tokens=12).generated not in (plain.generated, changed.generated)
    harness.call("unload_adapter", c.UnloadAdapter(handle=info.handle))
    harness.call("unload_adapter", c.UnloadAdapter(handle=info.handle))
    again = harness.run(PROMPT, max_tokens=12)
    assert again.generated == plain.generated and again.cache.kind == "live"
    assert harness.call("list_adapters").adapters == []


def test_neither_live_nor_stored_kv_crosses_adapter_sets(loras):
    store = MemoryStore(16)
    harness = Harness(store=store.make, cache={"block_tokens": 16})
    harness.run(PROMPT, max_tokens=4)
    info = load(harness, loras[0])
    with_one = harness.run(PROMPT, max_tokens=4)
    assert with_one.cache.kind == "cold"
    harness.call("evict", c.Evict())
    back = harness.run(PROMPT, max_tokens=4)
    assert back.cache.kind == "exact" and back.generated == with_one.generated
    harness.settle()
    roots = {stored.meta.root for stored in store.stored.values()}
    assert len(roots) == 2 and {stored.meta.namespace for stored in store.stored.values()} == {harness.ready.namespace}
    assert info.sha256 and len(info.sha256) == 64


def test_a_request_keeps_the_set_it_was_admitted_with(loras):
    harness = Harness()
    info = load(harness, loras[0])
    expected = harness.run(PROMPT, max_tokens=30).generated
    ref = harness.submit(PROMPT + "", max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    harness.call("unload_adapter", c.UnloadAdapter(handle=info.handle))
    freed = []
    free = harness.core.backend.free_adapter
    harness.core.backend.free_adapter = lambda lora: (freed.append(lora), free(lora))
    assert harness.end_of(ref) is None and not freed
    harness.finish(ref)
    assert harness.end_of(ref).generated == expected and len(freed) == 1


def test_requests_of_different_sets_take_turns(loras):
    harness = Harness()
    one = load(harness, loras[0])
    uses = [(), (AdapterUse(one.handle, 1.0),), (AdapterUse(one.handle, 2.0),)]
    refs = [harness.submit(PROMPT, max_tokens=40, adapters=use) for use in uses]
    progress = []
    while not all(harness.end_of(ref) for ref in refs):
        harness.tick()
        progress.append([len(harness.ids(ref)) for ref in refs])
    assert all(max(row) - min(row) <= 20 for row in progress), "no set runs away from the others"
    singles = [Harness() for _ in uses]
    for single, use, ref in zip(singles, uses, refs, strict=True):
        load(single, loras[0])
        assert single.run(PROMPT, max_tokens=40, adapters=use).generated == harness.end_of(ref).generated


@pytest.mark.parametrize("name", ["/nowhere/lora.gguf", "/nowhere/a\0b.gguf", "/dev/zero", "/tmp", "pipe"])
def test_what_cannot_be_an_adapter_is_answered_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    harness = Harness()
    with pytest.raises(InvalidRequest, match="cannot read adapter"):
        load(harness, str(tmp_path / name))
    assert harness.core.adapters.attached() == []


def test_unknown_adapters_are_named(loras):
    harness = Harness()
    end = harness.run(PROMPT, adapters=(AdapterUse("lora-nope", 1.0),))
    assert isinstance(end, Failed) and isinstance(end.error, AdapterNotFound)
    with pytest.raises(AdapterNotFound):
        harness.call("set_adapter_scale", c.SetAdapterScale(handle="lora-nope", scale=1.0))


def test_a_respawn_has_the_same_handles(loras):
    first = Harness()
    infos = [load(first, path, scale) for path, scale in zip(loras, (1.0, 0.5), strict=True)]
    spec = ModelSpec(
        model_id="m",
        load_id="2",
        config=ModelConfig(backend="stub", n_ctx=512, n_cells=1024),
        adapters=[SpecAdapter(handle=info.handle, path=info.path, scale=info.scale) for info in infos],
    )
    second = Harness(spec=spec)
    assert second.core.adapters.attached() == infos
    assert second.run(PROMPT, max_tokens=8).generated == first.run(PROMPT, max_tokens=8).generated
    lost = SpecAdapter(handle="lora-gone", path="/nowhere.gguf", scale=1.0)
    third = Harness(spec=ModelSpec(model_id="m", load_id="3", config=spec.config, adapters=[lost, *spec.adapters]))
    assert third.core.adapters.attached() == infos and "adapter_lost" in third.log.getvalue()
    with open(loras[0], "ab") as file:
        file.write(b"other weights")
    fourth = Harness(spec=ModelSpec(model_id="m", load_id="4", config=spec.config, adapters=spec.adapters))
    assert fourth.core.adapters.attached() == infos[1:], "a handle names what the file held, not where it was"
    assert "has changed" in fourth.log.getvalue()


# --- embeddings -------------------------------------------------------------------------------------------------------


def test_embeddings_run_between_ticks_beside_streams():
    harness = Harness(n_ubatch=32)
    ref = harness.submit("a stream", max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 1)
    texts = [harness.tokens(f"text number {n}") for n in range(12)]
    before = len(harness.ids(ref))
    result = harness.call("embed", EmbedTexts(inputs=[pack_tokens(text) for text in texts], normalize=True))
    assert len(harness.ids(ref)) - before >= 6, "two texts fit into a computation: six pieces, and a token beside each"
    vectors = np.array([np.frombuffer(vector, "<f4") for vector in result.vectors])
    assert vectors.shape == (12, result.n_embd)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    alone = Harness(n_ubatch=32).call("embed", EmbedTexts(inputs=[pack_tokens(texts[7])]))
    assert alone.vectors == [result.vectors[7]]


def test_texts_are_embedded_under_the_attached_adapters_whatever_is_decoded_beside(loras):
    harness = Harness(n_ubatch=32)

    def embed(num_texts=1):
        inputs = [pack_tokens(harness.tokens("a text of thirty tokens or so"))] * num_texts
        return harness.call("embed", EmbedTexts(inputs)).vectors

    plain = embed()
    info = load(harness, loras[0])
    changed = embed()
    assert changed != plain
    ref = harness.submit(PROMPT, max_tokens=60, adapters=())
    harness.until(lambda: harness.core.num_streaming == 1)
    assert embed(8) == changed * 8
    harness.post(EngineCall(1001, "embed", EmbedTexts([pack_tokens([97] * 30)] * 8)))
    harness.tick()
    harness.call("unload_adapter", c.UnloadAdapter(handle=info.handle))
    harness.until(lambda: harness.answer_of(1001))
    assert len(set(harness.answer_of(1001).result.vectors)) == 1, "what was begun keeps its adapters"
    assert embed() == plain and harness.core.adapters.attached() == []
    harness.finish(ref)


def test_calls_to_embed_that_are_late_do_not_pile_up_behind_a_long_one():
    harness = Harness()
    texts = [pack_tokens(harness.tokens("a text to embed"))] * 1000
    harness.post(EngineCall(1, "embed", EmbedTexts(texts)))
    for call_id in range(2, 50):
        harness.post(EngineCall(call_id, "embed", EmbedTexts(texts), deadline=harness.clock.now + 0.001))
    harness.tick(3)
    assert harness.answer_of(1) is None
    assert all(isinstance(harness.answer_of(call_id).error, Timeout) for call_id in range(2, 50))


def test_embeddings_that_cannot_be_are_refused():
    harness = Harness(n_ubatch=32)
    with pytest.raises(InvalidRequest, match="1 to 32 tokens"):
        harness.call("embed", EmbedTexts(inputs=[pack_tokens(range(33))]))
    with pytest.raises(InvalidRequest, match="1 to 32 tokens"):
        harness.call("embed", EmbedTexts(inputs=[b""]))
    with pytest.raises(Timeout):
        harness.call("embed", EmbedTexts(inputs=[pack_tokens([97])]), deadline=harness.clock.now - 1)
    assert harness.call("embed", EmbedTexts(inputs=[])).vectors == []


# --- speculation ------------------------------------------------------------------------------------------------------


def test_verify_counts_what_greedy_would_have_said():
    harness = Harness()
    truth = list(harness.run(PROMPT, max_tokens=12).generated)
    tokens = harness.tokens(PROMPT)

    def verify(draft, **fields):
        return harness.call("verify", c.Verify(tokens=pack_tokens(tokens), draft=pack_tokens(draft)), **fields)

    for right in (0, 1, 5, 11):
        wrong = [(truth[right] + 1) % 100]
        assert verify(truth[:right] + wrong) == c.Verified(accepted=right, next_token=truth[right])
    assert verify(truth[:6]) == c.Verified(accepted=6, next_token=truth[6])
    assert verify([]) == c.Verified(accepted=0, next_token=truth[0])
    with pytest.raises(InvalidRequest):
        harness.call("verify", c.Verify(tokens=b"", draft=b""))
    with pytest.raises(InvalidRequest, match="n_ctx"):
        verify([97] * 600)
    assert harness.drift() == []


def test_verifications_of_long_drafts_and_recurrent_models():
    for kind in ("attention", "recurrent"):
        harness = Harness(stub={"kind": kind}, n_batch=48)
        truth = list(harness.run(PROMPT, max_tokens=90).generated)
        body = c.Verify(tokens=pack_tokens(harness.tokens(PROMPT)), draft=pack_tokens(truth[:80]))
        assert harness.call("verify", body) == c.Verified(accepted=80, next_token=truth[80])


def test_a_verification_that_is_preempted_half_way_counts_from_the_beginning_again():
    harness = Harness(n_batch=48)
    truth = list(harness.run(PROMPT, max_tokens=90).generated)
    draft = [*truth[:60], (truth[60] + 1) % 100, *truth[61:80]]
    body = c.Verify(tokens=pack_tokens(harness.tokens(PROMPT)), draft=pack_tokens(draft))
    harness.post(EngineCall(1, "verify", body))
    request = harness.until(lambda: next((one for one in harness.core.running if one.choices), None))
    assert len(request.choices) < len(draft)
    harness.serving._requests.preempt(request)
    harness.until(lambda: harness.answer_of(1))
    assert harness.answer_of(1).result == c.Verified(accepted=60, next_token=truth[60])


def test_a_verification_that_cannot_be_says_why():
    harness = Harness(n_cells=64)
    body = c.Verify(tokens=pack_tokens(harness.tokens(PROMPT)), draft=b"")
    with pytest.raises(ContextOverflow, match="64 KV cells"):
        harness.call("verify", body)
    harness = Harness(n_seq_max=1)
    harness.submit("blocker", max_tokens=300)
    harness.post(EngineCall(1, "verify", body))
    harness.tick()
    harness.post(Park(2, "unload", finish_s=60.0, save_s=0.0))
    harness.until(lambda: harness.answer_of(1))
    assert isinstance(harness.answer_of(1).error, ModelLoading)


def test_a_verification_that_is_late_or_cancelled_says_so():
    harness = Harness(n_seq_max=1)
    harness.submit("blocker", max_tokens=300)
    harness.tick()
    body = c.Verify(tokens=pack_tokens(harness.tokens(PROMPT)), draft=b"")
    with pytest.raises(Timeout):
        harness.call("verify", body, deadline=harness.clock.now + 0.01)
    assert [request.ref for request in harness.core.by_ref.values()] == ["r1"]


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(temperature=0.7, repetition_penalty=1.3)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("emit", ["abcabcabcabcabcabc and abcabcabc once more, abcabc.", None])
def test_prompt_lookup_changes_no_answer(params, emit):
    stub = {"emit": emit} if emit else {}
    plain = Harness(stub=stub)
    expected = plain.run(PROMPT + " abcabcabc", max_tokens=48, params=params)
    harness = Harness(stub=stub, prompt_lookup=6)
    ref = harness.submit(PROMPT + " abcabcabc", max_tokens=48, params=params, stop=("once",) if emit else ())
    end = harness.finish(ref)
    stopped = plain.run(PROMPT + " abcabcabc", max_tokens=48, params=params, stop=("once",) if emit else ())
    assert end.generated == stopped.generated and end.finish_reason == stopped.finish_reason
    assert end.finish_len in (len(PROMPT) + 10 + len(end.generated), len(PROMPT) + 9 + len(end.generated))
    assert harness.run(PROMPT + " abcabcabc", max_tokens=48, params=params).generated == expected.generated
    assert harness.drift() == []


def test_prompt_lookup_saves_steps_where_text_repeats():
    harness = Harness(stub={"emit": "repeat after me: " * 12}, prompt_lookup=8)
    ref = harness.submit("x", max_tokens=180)
    steps = 0
    while harness.end_of(ref) is None:
        harness.tick()
        steps += 1
    end = harness.end_of(ref)
    assert steps < 100 and end.stats.draft_accepted > 60
    assert len([one for report in harness.of(ref, Generated) for one in report.ids]) == 180


def test_blocks_are_saved_while_guesses_come_partly_true():
    store = MemoryStore(16)
    harness = Harness(
        store=store.make, cache={"block_tokens": 16}, prompt_lookup=4, stub={"emit": "abcabd abcabe abcabf " * 8}
    )
    store.manual = True  # a real daemon's answer comes after the step in which it was asked
    ref = harness.submit("say abcabd abcabe abcabf ", max_tokens=150)
    while harness.end_of(ref) is None:
        harness.tick()
        store.deliver()
    counters, (live,) = harness.core.counters, harness.core.pool.cells
    assert counters["draft_accepted"] > 20 and counters["draft_tokens"] > counters["draft_accepted"] + 20
    assert counters["saves_continued"] >= 8, "a wrong guess leaves what was there before it as it was"
    assert len(live.extents) == 1 and harness.drift() == []


def test_prompt_lookup_finds_the_latest_repetition_of_the_longest_ngram():
    from array import array

    def guess(row, num):
        return propose(array("I", row), num)

    assert guess([1, 2, 3, 9, 1, 2, 3], 3) == [9, 1, 2]
    assert guess([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1) == [8]
    assert guess([5, 2, 3, 7, 6, 2, 3], 2) == [7, 6]
    assert guess([1, 2, 3, 4], 4) == [] and guess([1], 4) == [] and guess([1, 2, 3, 9, 1, 2, 3], 0) == []
    assert guess([4, 4, 4, 4], 2) == [4]
    # Ids whose bytes overlap at odd offsets must not match.
    assert guess([0x01020304, 0x05060708, 9, 0x02030405], 2) == []


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_unknown_calls_and_busy_sessions():
    harness = Harness()
    with pytest.raises(InternalError):
        harness.call("dance")
    harness.submit("busy", max_tokens=100, session_id="s")
    harness.tick()
    with pytest.raises(SessionBusy):
        harness.call("fork", c.Session(session_id="s"))
    assert harness.call("fork", c.Session(session_id="unknown", new_session_id="copy")).session_id == "copy"


def test_fork_refuses_a_taken_name():
    harness = Harness()
    harness.run(PROMPT, max_tokens=2, session_id="s")
    with pytest.raises(InvalidRequest, match="exists"):
        harness.call("fork", c.Session(session_id="s", new_session_id="s"))


def test_evict_without_a_cache_still_gives_memory_back():
    harness = Harness()
    first = harness.run(PROMPT, max_tokens=8)
    assert not harness.call("evict", c.Evict()).deferred and not harness.core.backend.has_context
    assert harness.run(PROMPT, max_tokens=8).generated == first.generated


def test_commands_are_taken_in_order():
    harness = Harness()
    for number in range(3):
        harness.post(EngineCall(900 + number, "list_adapters", None))
    harness.tick()
    assert [report.call_id for report in harness.reports] == [900, 901, 902]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1e12])
def test_senseless_scales_and_doubled_adapters_are_refused(loras, scale):
    harness = Harness()
    with pytest.raises(InvalidRequest, match="scale"):
        load(harness, loras[0], scale)
    info = load(harness, loras[0])
    with pytest.raises(InvalidRequest, match="scale"):
        harness.call("set_adapter_scale", c.SetAdapterScale(handle=info.handle, scale=scale))
    for uses in ((AdapterUse(info.handle, scale),), (AdapterUse(info.handle), AdapterUse(info.handle))):
        end = harness.run(PROMPT, adapters=uses, max_tokens=2)
        assert isinstance(end.error, InvalidRequest)
    assert harness.core.adapters.attached() == [info]
