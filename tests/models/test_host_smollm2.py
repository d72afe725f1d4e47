"""The main job, end to end: a whole host with a real model, its answers against plain llama.cpp, its warmth through kills."""

import os
import signal

import numpy as np
import pytest

from erllama_host import Client
from erllama_host.client import Completion, Model
from erllama_host.config import ModelConfig
from erllama_host.errors import ErllamaError, ModelLoadFailed
from tests.support.backends import feed, open_gguf_backend
from tests.support.hosts import eventually, running_host
from tests.support.models import smollm2

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(400)]

TIE_MARGIN = 0.5
"""Logits move by up to 0.7 with batch shape and neighbours (docs/internals/engine.md); a wrong prefix moves them by far more."""
BLOCK = 256


@pytest.fixture(scope="module")
def client():
    with running_host() as host, Client(host.endpoint) as client:
        yield client


@pytest.fixture(scope="module")
def tiny(client: Client) -> Model:
    return client.load_model(str(smollm2()), model_id="tiny", n_ctx=2048)


@pytest.fixture(scope="module")
def reference():
    """The model once more, in this process, as the judge."""
    backend = open_gguf_backend(smollm2(), n_ctx=2048, n_cells=2048, n_threads=2, n_threads_batch=2)
    yield backend
    backend.close()


def _prompt(model: Model, tokens: int, salt: str) -> list[int]:
    text = f"{salt}. " + " ".join(
        f"On day {n} the harbour master counted {n * 7 % 23} ships." for n in range(tokens // 8)
    )
    return model.tokenize(text)[:tokens]


def _assert_greedy(reference, completion: Completion) -> None:
    """Teacher-forced: each generated token is the argmax of the reference, or within TIE_MARGIN of it."""
    prompt = completion.tokens[: len(completion.tokens) - len(completion.generated)]
    reference.clear(0)
    logits = feed(reference, 0, prompt)
    for token in completion.generated:
        assert logits[token] >= np.max(logits) - TIE_MARGIN
        logits = feed(reference, 0, [token])


def _worker_is_back(model: Model, not_pid: int) -> bool:
    info = model.info()
    return info.status == "idle" and info.pid not in (0, not_pid)


def test_cold_warm_and_after_a_kill_it_is_the_same_greedy_answer(tiny: Model, reference) -> None:
    prompt = _prompt(tiny, 700, "first")
    cold = tiny.complete(prompt, max_tokens=12)
    warm = tiny.complete(prompt, max_tokens=12)
    pid = tiny.info().pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _worker_is_back(tiny, pid), "the worker serves again")
    after = tiny.complete(prompt, max_tokens=12)

    assert (cold.cache.kind, cold.cache.read_tokens) == ("cold", 0)
    assert warm.cache.kind == "live"
    assert (
        warm.cache.read_tokens >= len(prompt) - 1
    )  # all of it, once the logits are published; else one token is computed
    assert after.cache.kind == "exact"
    assert after.cache.tier_tokens == {"ram": len(prompt)}
    for completion in (cold, warm, after):
        _assert_greedy(reference, completion)
        assert completion.text == tiny.detokenize(completion.generated)


def test_a_diverging_prompt_is_warm_up_to_the_token_where_it_diverges(tiny: Model, reference) -> None:
    prompt = _prompt(tiny, 600, "second")
    tiny.complete(prompt, max_tokens=1)
    tiny.evict()
    other = [*prompt[:555], *tiny.tokenize(" a completely different ending", add_special=False)]
    completion = tiny.complete(other, max_tokens=8)
    assert completion.cache.kind == "partial"
    assert completion.cache.read_tokens == 555
    assert completion.cache.diverged_at == 555
    _assert_greedy(reference, completion)


def test_a_turn_that_continues_by_its_finish_key_computes_only_what_is_new(tiny: Model, reference) -> None:
    first = tiny.complete(_prompt(tiny, 400, "third"), max_tokens=16)
    tiny.evict()
    question = tiny.tokenize(" And what happened then?", add_special=False)
    second = tiny.complete([*first.tokens, *question], max_tokens=8, parent_key=first.finish_key)
    assert second.cache.read_tokens == first.finish_len
    _assert_greedy(reference, second)


def test_two_models_serve_at_once_and_a_kill_hurts_one_only(client: Client, tiny: Model) -> None:
    other = client.load_model(str(smollm2()), model_id="other", n_ctx=1024)
    try:
        with other.infer(other.tokenize("Count: one two three"), max_tokens=60, ignore_eos=True) as stream:
            pieces = iter(stream)
            next(pieces)
            os.kill(tiny.info().pid, signal.SIGKILL)
            rest = sum(len(piece.token_ids) for piece in pieces)
        assert stream.stats.generated_tokens == 60
        assert stream.stats.resumes == 0
        assert rest > 0
        assert tiny.complete("still there", max_tokens=2).generated
    finally:
        other.unload()


def test_a_stream_outlives_its_worker(tiny: Model, reference) -> None:
    prompt = _prompt(tiny, 300, "fourth")
    with tiny.infer(prompt, max_tokens=80, ignore_eos=True) as stream:
        generated: list[int] = []
        killed = False
        for piece in stream:
            generated += piece.token_ids
            if not killed and len(generated) >= 10:
                os.kill(tiny.info().pid, signal.SIGKILL)
                killed = True
    assert stream.stats.resumes >= 1
    assert len(generated) == 80
    reference.clear(0)
    logits = feed(reference, 0, prompt)
    for token in generated:
        assert logits[token] >= np.max(logits) - TIE_MARGIN
        logits = feed(reference, 0, [token])


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda folder: folder / "absent.gguf", "ModelLoadFailed"),
        (lambda folder: folder, "ModelLoadFailed"),
        (lambda folder: _written(folder / "text.gguf", b"this is no model"), "ModelLoadFailed"),
        (lambda folder: _written(folder / "half.gguf", smollm2().read_bytes()[: 40 << 20]), "ModelLoadFailed"),
    ],
    ids=["absent", "directory", "text", "half"],
)
def test_what_is_no_model_is_refused_and_the_host_runs_on(
    client: Client, tiny: Model, tmp_path, make, code: str
) -> None:
    with pytest.raises(ErllamaError) as caught:
        client.load_model(str(make(tmp_path)), model_id="broken")
    assert caught.value.code == code
    assert "broken" not in [info.model_id for info in client.list_models()]
    assert tiny.complete("still here", max_tokens=1).generated


def _written(path, content: bytes):
    path.write_bytes(content)
    return path


def test_mistakes_of_callers_are_named(client: Client, tiny: Model) -> None:
    def code_of(call) -> str:
        with pytest.raises(ErllamaError) as caught:
            call()
        return caught.value.code

    assert code_of(lambda: tiny.complete([1] * 3000)) == "ContextOverflow"
    assert code_of(lambda: tiny.complete([10**6], max_tokens=1)) == "InvalidRequest"
    assert code_of(lambda: tiny.complete("x", temperature=-1)) == "InvalidRequest"
    assert code_of(lambda: client.load_model(str(smollm2()), model_id="tiny")) == "AlreadyLoaded"
    assert code_of(lambda: client.load_model(str(smollm2()), model_id="Not/An/Id")) == "InvalidRequest"
    assert code_of(lambda: client.load_model(str(smollm2()), model_id="huge", n_ctx=2**30)) in (
        "ModelLoadFailed",
        "NoMemory",
    )
    assert code_of(lambda: client.model("nosuch").complete("x")) == "ModelNotLoaded"
    assert code_of(lambda: client.load_model(str(smollm2()), n_ctxx=1)) == "ConfigError"


def test_defaults_of_the_configuration_are_those_the_worker_reports(tiny: Model) -> None:
    info = tiny.info()
    assert info.n_seq_max == ModelConfig().n_seq_max
    assert info.n_cells == 2 * info.n_ctx
    assert info.kv_mode == "segments"


def test_an_address_space_that_is_too_small_for_the_model_is_named(client):
    with pytest.raises(ModelLoadFailed, match=r"raise address_space_bytes \(now 419430400\)"):
        client.load_model(str(smollm2()), model_id="narrow", address_space_bytes=400 << 20)
