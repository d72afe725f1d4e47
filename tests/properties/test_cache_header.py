"""Headers: what is written is read again, and no bytes whatever make the reader raise."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_host.kv.segment import (
    HeaderProblem,
    SaveReason,
    SegmentHeader,
    SegmentKind,
    SegmentMeta,
    decode_header,
    encode_header,
    header_bytes_needed,
)
from erllama_host.transport.shm import checksum

keys = st.binary(min_size=32, max_size=32)


@st.composite
def headers(draw):
    tokens = draw(st.binary(max_size=64).filter(lambda b: len(b) % 4 == 0))
    start = draw(st.integers(0, 2**31))
    meta = SegmentMeta(
        key=draw(keys),
        kind=draw(st.sampled_from(SegmentKind)),
        parent=draw(keys),
        namespace=draw(keys),
        root=draw(keys),
        start=start,
        end=start + len(tokens) // 4,
        tokens=tokens,
        covers_from=draw(st.integers(0, start)),
        block_tokens=draw(st.integers(1, 4096)),
        cuttable=draw(st.booleans()),
        reason=draw(st.sampled_from(SaveReason)),
        reply_start=draw(st.none() | st.integers(0, 2**32 - 2)),
    )
    big = st.integers(0, 2**63)
    return SegmentHeader(meta, draw(big), draw(big), draw(big))


@settings(max_examples=80, deadline=None)
@given(headers(), st.integers(0, 2**64 - 1))
def test_what_is_written_is_read(header, generation):
    data = struct.pack("<Q", generation) + encode_header(header, checksum)
    assert header_bytes_needed(data) == len(data)
    assert decode_header(data + b"rest", checksum) == header


@settings(max_examples=150, deadline=None)
@given(headers(), st.data())
def test_damage_is_refused_and_never_raises(header, data):
    good = struct.pack("<Q", 1) + encode_header(header, checksum)
    at = data.draw(st.integers(8, len(good) - 1))
    damaged = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    assert isinstance(decode_header(damaged, checksum), HeaderProblem)
    cut = good[: data.draw(st.integers(0, len(good) - 1))]
    assert decode_header(cut, checksum) is HeaderProblem.JUNK


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_answered(data, with_magic):
    if with_magic:
        data = data[:8].ljust(8, b"\0") + b"ERLKVSEG\x01\x00" + data[8:]
    assert isinstance(decode_header(data, checksum), HeaderProblem)
    header_bytes_needed(data)
