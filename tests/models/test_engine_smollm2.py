"""The engine with a real model: cold, live, restored and joint runs all say what the model says."""

import time

import numpy as np
import pytest

from erllama_host.config.model import ModelConfig, ModelSpec
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import SamplingParams
from tests.support.backends import open_gguf_backend, rows_of
from tests.support.engines import Harness
from tests.support.memory_store import MemoryStore
from tests.support.models import smollm2
from workers.backend.base import DecodeStatus

pytestmark = pytest.mark.model

BLOCK = 64
TEXT = (
    "A lighthouse keeper writes in his diary every evening. Today the wind came from the north, and the sea was grey. "
    "Two ships passed before noon; the first was a fishing boat, the second carried timber. He counts the gulls, mends "
    "the lamp, and waits for the post. In the afternoon a boy rowed over with bread and a letter from his sister, who "
)
MARGIN = 1.0
"""Another batch shape or cell moves a logit of this model by up to 0.7 although nothing is wrong."""


class RealClock:
    now = 0.0

    def __call__(self):
        return time.monotonic()


@pytest.fixture(scope="module")
def store():
    return MemoryStore(BLOCK)


def engine(store, home="", **config):
    options = {"n_ctx": 512, "n_cells": 2048, "n_threads": 1, "n_threads_batch": 1, "fingerprint_mode": "gguf_chunked"}
    spec = ModelSpec(
        model_id="m",
        load_id="1",
        config=ModelConfig(path=str(smollm2()), **{**options, **config}),
        home=str(home),
        cache={"block_tokens": BLOCK},
    )
    return Harness(store=store.make if store else None, spec=spec, clock=RealClock())


def worst_margin(prompt, answer):
    """Teacher-forced in a context of its own: how far each token of an answer is below the likeliest, at most."""
    backend = open_gguf_backend(smollm2(), n_ctx=512, n_batch=512)
    ids = [*prompt, *answer]
    assert backend.decode(rows_of((0, 0, prompt))) is DecodeStatus.OK
    worst, logits = 0.0, backend.logits(len(prompt) - 1)
    for position, token in enumerate(answer, start=len(prompt)):
        worst = max(worst, float(logits.max() - logits[token]))
        assert backend.decode(rows_of((0, position, ids[position : position + 1]))) is DecodeStatus.OK
        logits = backend.logits(0)
    backend.close()
    return worst


def test_cold_live_and_restored_runs_agree_and_an_exact_repeat_is_bit_identical(store, tmp_path):
    first = engine(store, tmp_path)
    assert first.ready.kv_mode.value == "segments"
    cold = first.run(TEXT, max_tokens=16, params=SamplingParams(logprobs=2))
    first.settle()
    live = first.run(TEXT, max_tokens=16)
    assert cold.cache.kind == "cold" and live.cache.kind == "live" and live.stats.prefilled_tokens == 0
    first.settle()
    first.close()

    second = engine(store, tmp_path)
    assert "earlier" in second.ready.kv_reason
    warm = second.run(TEXT, max_tokens=16, params=SamplingParams(logprobs=2))
    assert warm.cache.kind == "exact" and warm.cache.read_tokens == warm.stats.prompt_tokens
    assert warm.stats.prefilled_tokens == 0, "stored logits: no decode before the first token"
    assert cold.generated == live.generated == warm.generated
    # The same cells, extent and batch shapes: not merely the same tokens.
    logprobs = [
        [row.logprob for report in harness.reports if getattr(report, "ref", "") == "r1" and hasattr(report, "logprobs")
         for row in report.logprobs]
        for harness in (first, second)
    ]  # fmt: skip
    assert logprobs[0] == logprobs[1] and len(logprobs[0]) == 16
    second.settle()
    assert store.num_leases == store.num_open == 0 and second.drift() == []
    second.close()


def test_a_branch_is_restored_exactly_up_to_where_it_diverges(store):
    harness = engine(store)
    prompt = harness.tokens(TEXT)
    branch = [*prompt[:70], *harness.tokens(" suddenly a storm rose and he")]
    end = harness.run(branch, max_tokens=12)
    if store.stored:  # the test before has filled it; alone, this is a cold run
        assert end.cache.read_tokens == 70 and end.cache.kind == "partial"
    assert worst_margin(branch, end.generated) <= MARGIN
    assert harness.call("evict", c.Evict()).freed_bytes >= 0 and not harness.core.backend.has_context
    harness.close()


def test_requests_in_company_say_what_they_say_alone():
    harness = engine(None, n_seq_max=4)
    stems = ["The capital of France", "Once upon a time", "To make bread you", "The opposite of hot", TEXT]
    prompts = [harness.tokens(stem) for stem in stems]
    refs = [harness.submit(prompt, max_tokens=12, ignore_eos=True) for prompt in prompts]
    harness.finish(*refs)
    margins = [worst_margin(prompt, harness.end_of(ref).generated) for prompt, ref in zip(prompts, refs, strict=True)]
    assert max(margins) <= MARGIN, margins
    assert harness.drift() == []
    harness.close()


def test_prompt_lookup_keeps_greedy_answers():
    harness = engine(None, prompt_lookup=6)
    text = "one two three four five six seven. one two three four five six seven. one two three four"
    prompt = harness.tokens(text)
    end = harness.run(prompt, max_tokens=24, ignore_eos=True)
    assert end.stats.draft_accepted > 8
    assert worst_margin(prompt, end.generated) <= MARGIN
    draft = c.Verify(tokens=np.array(prompt, "<u4").tobytes(), draft=np.array(end.generated[:8], "<u4").tobytes())
    assert harness.call("verify", draft).accepted >= 4
    harness.close()
