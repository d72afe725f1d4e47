"""Requests whose prompt takes a while: what may happen before it is there."""

import pytest

from erllama_host.config.model import ModelConfig
from erllama_host.errors import InvalidRequest
from erllama_host.protocol.envelope import PROTOCOL_VERSION, Envelope
from erllama_host.protocol.inference import CLIENT_LOST_AFTER_S, ChatRequest, Infer, SamplingParams
from tests.support.backends import open_stub_backend
from tests.support.workers import MODEL_ID, NoChat, loaded_model
from workers.commands import Submit
from workers.inference import Inference
from workers.streams import Send

REF, CLIENT = f"{MODEL_ID}/" + "0" * 32, b"\x01client"
CHAT = Infer(chat=ChatRequest(messages=[{"role": "user", "content": "hi"}]))


class Later:
    """Background threads that run a job when they are told to."""

    def __init__(self):
        self.jobs = []

    def __call__(self, name):
        return self

    def run(self, job, then):
        self.jobs.append((job, then))

    def finish(self, result=None, error=None):
        """End the oldest job with what the test says."""
        _, then = self.jobs.pop(0)
        then(result, error)

    def work(self):
        """Run the oldest job."""
        job, then = self.jobs.pop(0)
        try:
            result = job()
        except InvalidRequest as error:
            then(None, error)
        else:
            then(result, None)


class Opened:
    """The streams of a model, and what came of them."""

    def __init__(self):
        self.later, self.effects = Later(), []
        model = loaded_model(engine=None, backend=open_stub_backend())
        config = ModelConfig(backend="stub")
        self.inference = Inference(model, config, "life", NoChat(), self.later, self.effects.extend)

    def infer(self, request, *, now=0.0, attempt=0):
        envelope = Envelope(PROTOCOL_VERSION, "infer", REF, MODEL_ID, 0, CLIENT)
        body = Infer(chat=request.chat, text=request.text, params=request.params, attempt=attempt)
        self.inference.infer(envelope, body, now)

    @property
    def submitted(self):
        return [effect for effect in self.effects if isinstance(effect, Submit)]

    @property
    def sent(self):
        return [effect.kind for effect in self.effects if isinstance(effect, Send)]


@pytest.fixture
def opened():
    return Opened()


def test_a_prompt_that_comes_late_is_not_taken_for_that_of_the_next_attempt(opened):
    # Else the ref would be submitted twice, which ends the engine.
    opened.infer(CHAT)
    opened.inference.judge_silence(CLIENT_LOST_AFTER_S + 1.0)
    opened.infer(CHAT, now=CLIENT_LOST_AFTER_S + 2.0, attempt=1)
    opened.later.finish([1, 2])
    assert opened.submitted == []
    opened.later.finish([3, 4])
    (submit,) = opened.submitted
    assert (submit.prompt, submit.attempt) == ([3, 4], 1)


GRAMMAR = Infer(text="hi", params=SamplingParams(grammar='root ::= "a"'))


def test_a_grammar_is_read_in_the_background_before_the_engine_hears_of_the_request(opened):
    opened.infer(GRAMMAR)
    assert opened.submitted == [] and len(opened.later.jobs) == 1
    opened.later.work()
    assert len(opened.submitted) == 1 and opened.sent == ["accepted"]


def test_a_faulty_grammar_never_reaches_the_engine(opened):
    opened.infer(Infer(text="hi", params=SamplingParams(grammar="root = a")))
    opened.later.work()
    assert opened.submitted == [] and opened.sent == ["error"]
    assert opened.effects[-1].body.details["field"] == "grammar"


def test_a_bias_on_a_token_that_does_not_exist_is_refused_at_once(opened):
    opened.infer(Infer(text="hi", params=SamplingParams(logit_bias={"9999": 1.0})))
    assert opened.submitted == [] and opened.effects[-1].body.details["field"] == "logit_bias"


def test_a_prompt_that_does_not_fit_is_refused_after_its_grammar_too(opened):
    opened.infer(Infer(text="x" * 600, params=GRAMMAR.params))
    opened.later.work()
    assert opened.submitted == [] and opened.effects[-1].body.code == "ContextOverflow"
