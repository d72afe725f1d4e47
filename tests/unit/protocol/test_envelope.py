"""Frames: round trip, bounds, and answers to what is not one."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama_host.errors import ErllamaError, InvalidRequest, ProtocolMismatch
from erllama_host.protocol import Envelope, decode_body, decode_envelope, encode_body, encode_envelope
from erllama_host.protocol import envelope as module
from erllama_host.protocol.inference import Infer
from erllama_host.protocol.kinds import EVENT_KINDS, HOST_KINDS, LINK_KINDS, MODEL_KINDS

ALL_BODIES = sorted(
    {kind.body for kind in (HOST_KINDS | MODEL_KINDS).values()}
    | {kind.answer for kind in (HOST_KINDS | MODEL_KINDS).values() if kind.answer}
    | set(EVENT_KINDS.values())
    | set(LINK_KINDS.values()),
    key=lambda cls: cls.__name__,
)


def test_an_envelope_is_plain_msgpack() -> None:
    frame = encode_envelope(Envelope(1, "infer", "tiny/00", "tiny", 250, b"\x01p"))
    assert msgpack.unpackb(frame) == [1, "infer", "tiny/00", "tiny", 250, b"\x01p"]
    assert decode_envelope(frame) == Envelope(1, "infer", "tiny/00", "tiny", 250, b"\x01p")


def test_a_short_envelope_has_defaults() -> None:
    assert decode_envelope(msgpack.packb([1, "hello", "r"])) == Envelope(1, "hello", "r")


def test_another_version_says_which_is_spoken() -> None:
    with pytest.raises(ProtocolMismatch, match="version 2 is not spoken here"):
        decode_envelope(encode_envelope(Envelope(2, "hello", "r")))


@pytest.mark.parametrize("frame", [b"\x93\x01\xa1\xff\xa1r", b"\x94\x01\xa1k\xa1r\xa1\xff", b"\x91" * 900])
def test_text_that_is_not_utf_8_and_nesting_are_clear_errors_too(frame: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not an envelope"):
        decode_envelope(frame)


@given(st.binary(max_size=200))
def test_any_first_frame_is_an_envelope_or_a_clear_error(frame: bytes) -> None:
    try:
        assert isinstance(decode_envelope(frame), Envelope)
    except ErllamaError as error:
        assert error.message


@given(st.sampled_from(ALL_BODIES), st.binary(max_size=200))
def test_any_second_frame_is_a_body_or_a_clear_error(body: type, frame: bytes) -> None:
    try:
        assert isinstance(decode_body("kind", frame, body), body)
    except InvalidRequest as error:
        assert error.message.startswith("kind:")


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(InvalidRequest):
        decode_body("infer", b"\x81\xa4chat" + b"\x91" * 5000, Infer)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(InvalidRequest, match="temprature") as caught:
        decode_body("infer", msgpack.packb({"temprature": 1}), Infer)
    assert caught.value.details["field"] == "temprature"


def test_a_wrong_type_is_named_with_its_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_body("infer", msgpack.packb({"text": "a", "params": {"top_k": "x"}}), Infer)
    assert caught.value.details["field"] == "params.top_k"


def test_an_oversized_body_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 10)
    with pytest.raises(InvalidRequest, match="at most 10"):
        decode_body("infer", encode_body(Infer(text="a" * 20)), Infer)


def test_an_empty_frame_is_a_body_of_defaults() -> None:
    assert encode_body(None) == b""
    assert decode_body("infer", b"", Infer) == Infer()
