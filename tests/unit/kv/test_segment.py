"""The segment header: a golden file, its offset table read by hand, and everything that must be refused."""

import dataclasses
import struct
from pathlib import Path

import pytest
import xxhash

from erllama_host.kv.segment import (
    FORMAT_VERSION,
    TOKENS_OFFSET,
    HeaderProblem,
    SaveReason,
    SegmentHeader,
    SegmentKind,
    SegmentMeta,
    decode_header,
    encode_header,
    file_bytes,
    file_name,
    header_bytes_needed,
    parse_file_name,
    payload_offset,
)
from erllama_host.protocol import pack_tokens
from erllama_host.transport.shm import checksum

GOLDEN = Path(__file__).parent / "golden" / "segment-v1.bin"
META = SegmentMeta(
    key=bytes(range(32)),
    kind=SegmentKind.TAIL,
    parent=bytes(range(32, 64)),
    namespace=bytes(range(64, 96)),
    root=bytes(range(96, 128)),
    start=512,
    end=515,
    tokens=pack_tokens([7, 70_000, 4_000_000_000]),
    covers_from=512,
    block_tokens=256,
    cuttable=True,
    reason=SaveReason.FINISH,
    reply_start=513,
)
HEADER = SegmentHeader(
    META, created_ns=1_700_000_000_123_456_789, payload_bytes=10_000, payload_checksum=0x1122334455667788
)


def whole(header: SegmentHeader = HEADER, generation: int = 5) -> bytes:
    return struct.pack("<Q", generation) + encode_header(header, checksum)


def test_golden_file_is_written_byte_for_byte():
    assert whole() == GOLDEN.read_bytes()


def test_golden_file_is_read():
    assert decode_header(GOLDEN.read_bytes(), checksum) == HEADER


def test_offset_table():
    data = GOLDEN.read_bytes()
    read = lambda form, offset: struct.unpack_from("<" + form, data, offset)[0]  # noqa: E731
    assert read("Q", 0) == 5
    assert data[8:16] == b"ERLKVSEG"
    assert (read("H", 16), data[18], data[19]) == (FORMAT_VERSION, 2, 3)
    assert read("I", 20) == len(data) == TOKENS_OFFSET + 12
    assert (data[24:56], data[56:88], data[88:120], data[120:152]) == (META.key, META.parent, META.namespace, META.root)
    assert [read("I", at) for at in (152, 156, 160, 164, 168, 172)] == [512, 515, 512, 513, 1, 256]
    assert [read("Q", at) for at in (176, 184, 192, 200)] == [
        1_700_000_000_123_456_789,
        4096,
        10_000,
        0x1122334455667788,
    ]
    assert read("Q", 208) == xxhash.xxh3_64_intdigest(data[8:208] + data[216:])
    assert struct.unpack_from("<3I", data, 216) == (7, 70_000, 4_000_000_000)


def test_generation_is_outside_of_the_checksum():
    assert decode_header(whole(generation=99), checksum) == HEADER


@pytest.mark.parametrize("at", [16, 18, 24, 100, 152, 170, 184, 192, 200, 208, 216, 227])
def test_any_flipped_bit_is_refused(at):
    data = bytearray(whole())
    data[at] ^= 0x40
    assert isinstance(decode_header(bytes(data), checksum), HeaderProblem)


def test_versions_are_told_apart():
    older, newer = bytearray(whole()), bytearray(whole())
    older[16], newer[16] = 0, FORMAT_VERSION + 1
    assert decode_header(bytes(older), checksum) is HeaderProblem.OLDER_VERSION
    assert decode_header(bytes(newer), checksum) is HeaderProblem.NEWER_VERSION


def test_cut_files_are_refused():
    for length in (0, 7, 100, TOKENS_OFFSET - 1, TOKENS_OFFSET, len(whole()) - 1):
        assert decode_header(whole()[:length], checksum) is HeaderProblem.JUNK


def test_not_a_finish_row_has_no_reply():
    meta = dataclasses.replace(META, reply_start=None, cuttable=False)
    header = dataclasses.replace(HEADER, meta=meta)
    assert decode_header(whole(header), checksum) == header


def test_header_length_is_known_from_the_fixed_part():
    assert header_bytes_needed(whole()[:TOKENS_OFFSET]) == len(whole())
    assert header_bytes_needed(b"\0" * 400) == 0


def test_payloads_begin_and_files_end_at_pages():
    assert payload_offset(256) == 4096 and payload_offset(2000) == 12288
    assert file_bytes(256, 1) == 8192 and file_bytes(256, 4096) == 8192 and file_bytes(256, 4097) == 12288


def test_file_names_go_both_ways():
    name = file_name(META.key, SegmentKind.SNAPSHOT)
    assert name == f"00/{META.key.hex()}.snapshot"
    assert parse_file_name(name.partition("/")[2]) == (META.key, SegmentKind.SNAPSHOT)
    for foreign in ("README", "x" * 64 + ".block", META.key.hex() + ".BLOCK", META.key.hex(), META.key.hex() + ".tmp"):
        assert parse_file_name(foreign) is None
