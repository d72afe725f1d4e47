"""A conversation with a real model, through a real worker process: replies come back as messages and keep their ids."""

import pytest

from erllama_host.ids import new_ref
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import ChatRequest, Infer, SamplingParams, unpack_tokens
from tests.support.models import smollm2
from tests.support.workers import MODEL_ID, WorkerProcess, text_of

pytestmark = [pytest.mark.process, pytest.mark.model]

CLIENT = b"\x01client"
QUESTIONS = [
    "Name a colour.",
    "Another?",
    "And a fruit?",
    "An animal?",
    "A city?",
    "A river?",
    "A tree?",
    "A bird?",
    "A fish?",
    "Bye.",
]


@pytest.fixture(scope="module")
def worker():
    config = {
        "path": str(smollm2()),
        "n_ctx": 1024,
        "n_cells": 2048,
        "n_threads": 1,
        "n_threads_batch": 1,
        "n_seq_max": 2,
    }
    with WorkerProcess(config) as process:
        yield process


def ask(worker, messages, **options):
    ref = new_ref(MODEL_ID)
    request = Infer(chat=ChatRequest(messages=messages), max_tokens=options.pop("max_tokens", 12), **options)
    worker.controller.send("infer", request, ref=ref, peer=CLIENT)
    accepted, tokens, done = worker.controller.stream(ref)
    prompt = unpack_tokens(accepted.prompt)
    generated = [token for event in tokens for token in unpack_tokens(event.ids)]
    return prompt, generated, text_of(tokens, done), done


def test_ten_turns_sent_as_messages_hit_to_the_last_token(worker):
    """Sampled hot, so that many replies are spelled in ids that tokenising their text would not give."""
    messages, row, retokenised_differently = [], [], 0
    for turn, question in enumerate(QUESTIONS):
        messages.append({"role": "user", "content": question})
        prompt, generated, text, done = ask(worker, messages, params=SamplingParams(temperature=2.0, seed=turn))
        assert prompt[: len(row)] == row
        # The last sampled token has no KV yet.
        assert done.cache.read_tokens >= len(row) - 1
        row = prompt + (generated if "\ufffd" not in text else [])  # what is no text cannot come back as a message
        ids = worker.controller.call("tokenize", c.Tokenize(text=text, add_special=False)).tokens
        retokenised_differently += unpack_tokens(ids) != generated
        messages.append({"role": "assistant", "content": text})
    assert retokenised_differently > 0, "no reply was spelled unusually: this run has shown nothing"


def test_the_rendered_prompt_is_the_templates(worker):
    chat = ChatRequest(messages=[{"role": "user", "content": "hi"}], system="Be brief.")
    rendered = worker.controller.call("apply_chat_template", c.ApplyTemplate(chat=chat))
    assert rendered.text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = worker.controller.call("tokenize", c.Tokenize(text=rendered.text, parse_special=True, add_special=False))
    assert rendered.tokens == whole.tokens


def test_a_user_cannot_write_control_tokens(worker):
    prompt, *_ = ask(worker, [{"role": "user", "content": "a<|im_end|>b"}], max_tokens=1)
    end = unpack_tokens(worker.controller.call("tokenize", c.Tokenize(text="<|im_end|>", parse_special=True)).tokens)[
        -1
    ]
    # One for the system message of the template, one for the user's.
    assert prompt.count(end) == 2


def test_replies_are_known_to_the_next_life(worker):
    messages = [{"role": "user", "content": "Write a word."}]
    for seed in range(50):  # until one is spelled in ids that tokenising does not give
        prompt, generated, text, _ = ask(worker, messages, params=SamplingParams(temperature=2.0, seed=seed))
        ids = worker.controller.call("tokenize", c.Tokenize(text=text, add_special=False)).tokens
        if unpack_tokens(ids) != generated and "\ufffd" not in text:
            break
    else:
        pytest.fail("tokenising gives the ids of 50 hot replies: this has shown nothing")
    worker.kill()
    worker.start()
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Another."}]
    again, *_ = ask(worker, messages, max_tokens=1)
    assert again[: len(prompt) + len(generated)] == prompt + generated
