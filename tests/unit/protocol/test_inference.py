"""Token packing and ranges of requests."""

import math
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama_host.errors import InvalidRequest
from erllama_host.protocol import decode_body, encode_body, pack_tokens, unpack_tokens
from erllama_host.protocol.inference import AdapterUse, ChatRequest, ErrorBody, Infer, SamplingParams, error_body
from erllama_host.protocol.validate import check_infer


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_tokens_are_little_endian_u32(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    assert packed == b"".join(token.to_bytes(4, "little") for token in tokens)
    assert unpack_tokens(packed) == tokens


@pytest.mark.parametrize("tokens", [[-1], [2**32], ["a"], [1.5], [None]])
def test_what_is_no_token_id_is_refused(tokens: list[object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pack_tokens(tokens)  # type: ignore[arg-type]
    assert caught.value.details["field"] == "tokens"


def test_half_a_token_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="multiple of 4"):
        unpack_tokens(b"abcde")


BAD_PARAMS = [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
    ("min_p", -0.1), ("min_p", 1.5), ("typical_p", 0.0), ("repetition_penalty", 0.0), ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1), ("penalty_last_n", -2), ("seed", -1), ("seed", 2**32), ("logprobs", 21), ("logprobs", -1),
    ("logit_bias", {"x": 1.0}), ("logit_bias", {"1": math.nan}), ("logit_bias", {"1": math.inf}),
    ("logit_bias", {str(n): 0.0 for n in range(1025)}), ("grammar", "x" * 70_000), ("json_schema", "x" * 70_000),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_PARAMS)
def test_a_parameter_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        check_infer(Infer(text="a", params=SamplingParams(**{field: value})))
    assert caught.value.details["field"] == field


BAD_REQUESTS = [
    ("prompt", {}), ("prompt", {"text": "a", "tokens": b""}), ("prompt", {"text": "a", "chat": ChatRequest(messages=[])}),
    ("max_tokens", {"text": "a", "max_tokens": -1}), ("priority", {"text": "a", "priority": 101}),
    ("pin_prefix", {"text": "a", "pin_prefix": -1}), ("credit", {"text": "a", "credit": -1}),
    ("parent_key", {"text": "a", "parent_key": b"short"}), ("session_id", {"text": "a", "session_id": ""}),
    ("stop", {"text": "a", "stop": [""]}), ("stop", {"text": "a", "stop": ["x"] * 17}),
    ("stop", {"text": "a", "stop": ["x" * 257]}),
    ("adapters", {"text": "a", "adapters": [AdapterUse("h", math.nan)]}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "fields"), BAD_REQUESTS)
def test_a_request_out_of_range_is_named(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_infer(Infer(**fields))  # type: ignore[arg-type]
    assert caught.value.details["field"] == field


def test_the_defaults_are_fine() -> None:
    check_infer(Infer(text="hello"))
    check_infer(
        Infer(tokens=pack_tokens([1]), params=SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=7, logprobs=5))
    )


def test_an_error_travels_whatever_its_details_are() -> None:
    error = InvalidRequest("no", field="path", key=b"\x00", near={"file": PurePosixPath("/a/b")})
    body = error_body(error)
    assert (body.code, body.message, body.retryable) == ("InvalidRequest", "no", error.retryable)
    assert body.details == {"field": "path", "key": b"\x00", "near": {"file": "/a/b"}}
    assert decode_body("error", encode_body(body), ErrorBody) == body
