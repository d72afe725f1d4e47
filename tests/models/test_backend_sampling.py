"""Sampling on real llama.cpp: the reference loop, grammars and schemas, and what must never reach the library."""

import json
import threading

import llama_cpp.llama_cpp as native
import numpy as np
import pytest

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import SamplingParams
from tests.support import ggufs, models
from tests.support.backends import GREEDY, feed, open_gguf_backend, some_tokens
from workers.backend.logprobs import logprob_of

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def smollm2():
    backend = open_gguf_backend(models.smollm2(), n_ctx=512, n_cells=1024)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def tiny():
    backend = open_gguf_backend(ggufs.tiny("attention"))
    yield backend
    backend.close()


def generate(backend, params, prompt, limit, seed=1):
    """Sampled tokens after `prompt`, up to the end token or `limit`."""
    backend.clear(0)
    sampler = backend.make_sampler(params, seed)
    ids = backend.vocabulary.tokenize(prompt)
    feed(backend, 0, ids)
    row, chosen = len(ids) - 1, []
    while len(chosen) < limit:
        token = sampler.sample(row)
        if backend.vocabulary.is_eog(token):
            break
        chosen.append(token)
        feed(backend, 0, [token])
        row = 0
    sampler.close()
    return chosen


def reference_greedy(path, prompt, count):
    """The plainest loop over llama-cpp-python's low-level API."""
    model = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
    vocab = native.llama_model_get_vocab(model)
    params = native.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, 1, 1
    params.flash_attn_type = 1
    context = native.llama_init_from_model(model, params)
    buffer = (native.llama_token * 256)()
    ids = list(buffer[: native.llama_tokenize(vocab, prompt.encode(), len(prompt.encode()), buffer, 256, True, False)])
    chosen = []
    for _ in range(count):
        array = (native.llama_token * len(ids))(*ids)
        assert native.llama_decode(context, native.llama_batch_get_one(array, len(ids))) == 0
        logits = native.llama_get_logits_ith(context, -1)
        row = np.ctypeslib.as_array(logits, shape=(native.llama_vocab_n_tokens(vocab),))
        chosen.append(int(row.argmax()))
        ids = chosen[-1:]
    native.llama_free(context)
    native.llama_model_free(model)
    return chosen


def test_greedy_equals_the_plain_loop(smollm2):
    prompt = "The three largest cities of France are"
    assert generate(smollm2, GREEDY, prompt, 24) == reference_greedy(models.smollm2(), prompt, 24)


def test_logprobs_are_the_log_softmax(smollm2):
    logits = feed(smollm2, 1, smollm2.vocabulary.tokenize("One, two,"))
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    report = logprob_of(logits, 100, 5)
    assert report.logprob == pytest.approx(exact[100], abs=1e-4)
    best = np.argsort(-exact)[:5]
    assert [token for token, _ in report.top] == best.tolist()
    assert [value for _, value in report.top] == pytest.approx(exact[best].tolist(), abs=1e-4)
    assert logprob_of(logits, 100, 0).top == []
    smollm2.clear(1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_holds_at_every_step(smollm2, temperature):
    grammar = 'root ::= "yes, " ("red" | "green" | "blue") [!.] '
    params = SamplingParams(grammar=grammar, temperature=temperature, seed=4)
    text = smollm2.vocabulary.detokenize(generate(smollm2, params, "Which colour is it?", 40))
    assert text[:-1] in {"yes, red", "yes, green", "yes, blue"} and text[-1] in "!."


def test_a_schema_makes_json_that_fits(smollm2):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "maximum": 99, "minimum": 0},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    params = SamplingParams(json_schema=json.dumps(schema), temperature=0.7, seed=3)
    value = json.loads(smollm2.vocabulary.detokenize(generate(smollm2, params, "A person as JSON:\n", 60)))
    assert set(value) == {"name", "age"} and len(value["name"]) <= 8 and 0 <= value["age"] <= 99


def test_grammar_states_of_two_requests_are_their_own(tiny):
    params = SamplingParams(grammar='root ::= "ab"')
    first, second = tiny.make_sampler(params, 1), tiny.make_sampler(params, 1)
    logits = feed(tiny, 0, some_tokens(tiny, 3))
    text = []
    for _ in range(2):
        text += [first.sample_from(logits)]
        text += [second.sample_from(logits)]
    assert tiny.vocabulary.detokenize(text) == "aabb"
    assert tiny.vocabulary.is_eog(first.sample_from(logits))
    for sampler in (first, second):
        sampler.close()
    tiny.clear(0)


def test_a_replayed_grammar_goes_on_where_it_was(tiny):
    sampler = tiny.make_sampler(SamplingParams(grammar='root ::= "abcdef"'), 1)
    sampler.replay(tiny.vocabulary.tokenize("abc", add_special=False))
    logits = feed(tiny, 0, some_tokens(tiny, 3))
    assert tiny.vocabulary.detokenize([sampler.sample_from(logits) for _ in range(3)]) == "def"
    with pytest.raises(InvalidRequest):
        sampler.replay(tiny.vocabulary.tokenize("x", add_special=False))
    sampler.close()
    tiny.clear(0)


def test_a_grammar_that_leaves_no_token_is_an_error_and_no_abort(tiny):
    # No character is after z and before a.
    sampler = tiny.make_sampler(SamplingParams(grammar="root ::= [z-a]"), 1)
    logits = feed(tiny, 0, some_tokens(tiny, 3))
    with pytest.raises(InvalidRequest, match="no token") as caught:
        sampler.sample_from(logits)
    assert caught.value.details["field"] == "grammar"
    sampler.close()
    tiny.clear(0)


HOSTILE = {
    "no root": 'main ::= "a"',
    "syntax": "root ::= )))",
    "left recursion": 'root ::= root "a" | "a"',
    "empty range": 'root ::= "a"{5,2}',
    "nested repetition": 'root ::= ((("a"?){40})?){40}',
    "doubling": "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"?\nroot ::= r0',
    "stars": "root ::= " + " ".join(['"a"*'] * 2000),
    "too deep": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
    "token": "root ::= <think>",
    "too long": 'root ::= "' + "a" * 70_000 + '"',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_grammars_that_would_harm_are_refused(tiny, name):
    for call in (tiny.check_sampling, lambda params: tiny.make_sampler(params, 1)):
        with pytest.raises(InvalidRequest) as caught:
            call(SamplingParams(grammar=HOSTILE[name]))
        assert caught.value.details["field"] == "grammar"


@pytest.mark.parametrize("grammar", ["root ::= ([a-z ]+ | [a-z ]+)+", 'root ::= s\ns ::= [a-z ] s s | [a-z ] s | ""'])
def test_ambiguous_grammars_are_followed_all_the_same(smollm2, grammar):
    # Every path through these is one of billions; llama.cpp's sampler, which follows each, would not come back.
    text = smollm2.vocabulary.detokenize(generate(smollm2, SamplingParams(grammar=grammar), "Once upon a time,", 12))
    assert len(text) > 12 and set(text) <= set("abcdefghijklmnopqrstuvwxyz ")


@pytest.mark.parametrize(
    "schema",
    [
        "not json",
        "[]",
        '{"type": "string", "maxLength": 100000}',
        '{"type": "string", "pattern": "^(a{900}){900}$"}',
        '{"$ref": "https://example.invalid/schema.json"}',
        '{"$ref": "#/nowhere"}',
        '{"type": "nonsense"}',
        '{"items": ' * 70 + "{}" + "}" * 70,
        "[" * 20_000 + "]" * 20_000,
    ],
)
def test_schemas_that_cannot_be_grammars_are_refused(tiny, schema):
    with pytest.raises(InvalidRequest) as caught:
        tiny.make_sampler(SamplingParams(json_schema=schema), 1)
    assert caught.value.details["field"] == "json_schema"


def test_sampling_can_be_checked_by_another_thread_during_a_decode(tiny):
    failures = []

    def check():
        try:
            for index in range(20):
                tiny.check_sampling(SamplingParams(grammar=f'root ::= "{index}" [a-z]+'))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    for _ in range(20):
        feed(tiny, 0, some_tokens(tiny, 20))
    thread.join()
    tiny.clear(0)
    assert not failures


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1e-40),
        SamplingParams(temperature=5e-324, top_p=0.9),
        SamplingParams(temperature=1e-38, top_k=5, typical_p=0.5),
    ],
    ids=["no float", "smallest", "divided"],
)
def test_numbers_beyond_what_llama_cpp_computes_with_mean_what_they_say(smollm2, params):
    ids = smollm2.vocabulary.tokenize("The capital of France is")
    smollm2.clear(0)
    likeliest = int(feed(smollm2, 0, ids).argmax())
    sampler = smollm2.make_sampler(params, 1)
    assert sampler.sample(len(ids) - 1) == likeliest, "as cold as that the likeliest is drawn"
    sampler.close()


def test_a_bias_beyond_what_llama_cpp_computes_with_wins(smollm2):
    ids = smollm2.vocabulary.tokenize("The capital of France is")
    for temperature in (0.0, 1.0, 1e-40):
        smollm2.clear(0)
        feed(smollm2, 0, ids)
        sampler = smollm2.make_sampler(SamplingParams(temperature=temperature, logit_bias={"1234": 1e300}), 1)
        assert sampler.sample(len(ids) - 1) == 1234
        sampler.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-40])
def test_a_penalty_beyond_what_llama_cpp_computes_with_repeats(smollm2, temperature):
    ids = smollm2.vocabulary.tokenize("The capital of France is")
    smollm2.clear(0)
    feed(smollm2, 0, ids)
    sampler = smollm2.make_sampler(SamplingParams(temperature=temperature, repetition_penalty=1e-300), 1)
    sampler.prime(ids)
    assert sampler.sample(len(ids) - 1) in ids
    sampler.close()
