"""From keyword arguments to a checked `Infer`."""

import pytest

from erllama_host.client.infer_options import OPTION_NAMES, adapter_uses, infer_request
from erllama_host.client.model_calls import chat_request, embed
from erllama_host.errors import InvalidRequest
from erllama_host.protocol.calls import AdapterInfo
from erllama_host.protocol.inference import AdapterUse, Infer, SamplingParams, pack_tokens

OF_THE_MESSAGE = {"text", "tokens", "chat", "params", "credit", "attempt", "resume"}


def test_every_parameter_of_the_wire_is_an_option():
    wire = set(SamplingParams.__struct_fields__) | set(Infer.__struct_fields__) - OF_THE_MESSAGE
    assert set(OPTION_NAMES) == wire | {"deadline_s", "max_resumes"}


def test_prompts():
    assert infer_request("hi", {}).body.text == "hi"
    assert infer_request([1, 2], {}).body.tokens == infer_request((1, 2), {}).body.tokens == pack_tokens([1, 2])
    assert infer_request(chat_request([{"role": "user"}], None, None), {}).body.chat.messages == [{"role": "user"}]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"top_p": 0}, "top_p"),
        ({"temperature": "warm"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {1: "x"}}, "logit_bias"),
        ({"logit_bias": {-1: 0.5}}, "logit_bias"),
        ({"json_schema": {"a": object()}}, "json_schema"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"),
        ({"adapters": [5]}, "adapters"),
        ({"adapters": 5}, "adapters"),
        ({"parent_key": b"short"}, "parent_key"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": True}, "deadline_s"),
        ({"max_resumes": -1}, "max_resumes"),
        ({"session_id": ""}, "session_id"),
        ({"priority": 101}, "priority"),
        ({"ignore_eos": 1}, "ignore_eos"),
    ],
)
def test_bad_values_name_their_field(options, field):
    with pytest.raises(InvalidRequest, match=field) as caught:
        infer_request("hi", options)
    assert caught.value.details["field"].startswith(field)


@pytest.mark.parametrize("prompt", [b"bytes", ["a"], [-1], [1.5], 7, None])
def test_bad_prompts(prompt):
    with pytest.raises(InvalidRequest):
        infer_request(prompt, {})


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("half a character: \udcff", {}),
        (chat_request([{"role": "user", "content": "\ud800"}], None, None), {}),
        (chat_request([{"role": "user"}], None, None, {"number": 2**70}), {}),
        ("hi", {"grammar": "\ud800"}),
        ("hi", {"session_id": object()}),
    ],
)
def test_what_cannot_travel_is_told_before_anything_is_sent(prompt, options):
    with pytest.raises(InvalidRequest, match="cannot be encoded"):
        infer_request(prompt, options)


def test_an_unknown_option_far_from_all_lists_them():
    with pytest.raises(InvalidRequest, match="the options are: max_tokens"):
        infer_request("hi", {"zzzzzzzz": 1})


def test_values_are_put_into_the_form_of_the_wire():
    request = infer_request(
        "hi",
        {
            "stop": "END",
            "logit_bias": {7: -1},
            "json_schema": {"type": "object"},
            "adapters": {"a": 0.5},
            "temperature": 1,
            "deadline_s": 2,
            "max_resumes": 0,
        },
    )
    body = request.body
    assert (body.stop, body.adapters) == (["END"], [AdapterUse("a", 0.5)])
    assert (body.params.logit_bias, body.params.json_schema) == ({"7": -1.0}, '{"type": "object"}')
    assert (body.params.temperature, request.deadline_s, request.max_resumes) == (1.0, 2.0, 0)


def test_adapters_in_every_form():
    info = AdapterInfo(handle="c", scale=0.25)
    assert adapter_uses(["a", ("b", 2), info]) == [AdapterUse("a"), AdapterUse("b", 2.0), AdapterUse("c", 0.25)]
    assert adapter_uses([]) == []
    assert adapter_uses("a") == [AdapterUse("a")]


def test_messages_must_be_mappings():
    for messages in ("hi", ["hi"], {"role": "user"}):
        with pytest.raises(InvalidRequest, match="messages"):
            chat_request(messages, None, None)
    with pytest.raises(InvalidRequest, match="tools"):
        chat_request([], None, ["tool"])


def test_embedding_inputs():
    assert embed("m", "a", True).body.texts == ["a"]
    assert embed("m", [1], True).body.tokens == [pack_tokens([1])]
    for inputs in ([], "", ["a", [1]]):
        with pytest.raises(InvalidRequest):
            embed("m", inputs, True)
