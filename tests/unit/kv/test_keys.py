"""Keys: golden vectors computed with nothing but hashlib, and one test per thing that must keep rows apart."""

import dataclasses
import hashlib
import struct

import msgpack
import pytest

from erllama_host.kv.keys import (
    CTX_PARAMS_VERSION,
    QUANT_BYTES,
    UNKNOWN_QUANT,
    ContextShape,
    KeySpace,
    ctx_params_hash,
    effective_fingerprint,
    quant_byte,
)
from erllama_host.protocol import pack_tokens

MODEL = bytes(range(32))
SHAPE = ContextShape(
    type_k="f16",
    type_v="f16",
    kv_rotation=False,
    flash_attn=True,
    rope_scaling="none",
    rope_freq_base=10000.0,
    rope_freq_scale=1.0,
    rope_factors="none",
    yarn_ext_factor=-1.0,
    yarn_attn_factor=1.0,
    yarn_beta_fast=32.0,
    yarn_beta_slow=1.0,
    yarn_orig_ctx=2048,
    swa_mode="none",
    llama_build="b1234",
)


def test_golden_key_vectors():
    space = KeySpace(MODEL, 15, b"\xaa" * 32)
    tokens = [1, 2, 49151, 4_294_967_295]
    packed = struct.pack("<4I", *tokens)
    by_hand = hashlib.sha256(MODEL + b"\x0f" + b"\xaa" * 32 + packed).hexdigest()
    assert space.key(pack_tokens(tokens)).hex() == by_hand
    assert by_hand == "b372d2f71441163a7c32b94308fc0743e0c53743e5ec7ef756d69632b8d333d1"
    assert space.root.hex() == hashlib.sha256(MODEL + b"\x0f" + b"\xaa" * 32).hexdigest()
    assert space.root.hex() == "28d139a8e63dd4df54bda0e900204e9855eb772ee6f42874a008fe281d4f48ca"


def test_golden_context_hash():
    fields = dataclasses.asdict(SHAPE) | {"version": CTX_PARAMS_VERSION}
    by_hand = hashlib.sha256(msgpack.packb(dict(sorted(fields.items())))).hexdigest()
    assert ctx_params_hash(SHAPE).hex() == by_hand
    assert by_hand == "47440ec90e8e4144ec831df9ea7bfe04b998a172877348d56135d8c7f86c1214"


OTHER_VALUES = {
    "type_k": "q8_0",
    "type_v": "q8_0",
    "kv_rotation": True,
    "flash_attn": False,
    "rope_scaling": "yarn",
    "rope_freq_base": 500000.0,
    "rope_freq_scale": 0.5,
    "rope_factors": "long",
    "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 2.0,
    "yarn_beta_fast": 16.0,
    "yarn_beta_slow": 2.0,
    "yarn_orig_ctx": 4096,
    "swa_mode": "full",
    "llama_build": "b1235",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ContextShape)])
def test_every_field_of_the_context_keeps_rows_apart(field):
    other = dataclasses.replace(SHAPE, **{field: OTHER_VALUES[field]})
    assert ctx_params_hash(other) != ctx_params_hash(SHAPE)


def test_a_whole_number_hashes_like_the_same_float():
    assert ctx_params_hash(dataclasses.replace(SHAPE, rope_freq_base=10000)) == ctx_params_hash(SHAPE)


def test_adapters_change_the_fingerprint_whatever_their_order():
    first, second = (b"\x01" * 32, 1.0), (b"\x02" * 32, 0.5)
    assert effective_fingerprint(MODEL) == MODEL
    both = effective_fingerprint(MODEL, [first, second])
    assert both == effective_fingerprint(MODEL, [second, first])
    parts = sorted([first[0] + struct.pack("<q", 1 << 32), second[0] + struct.pack("<q", 1 << 31)])
    assert both == hashlib.sha256(MODEL + b"".join(parts)).digest()
    others = {both, effective_fingerprint(MODEL, [first]), effective_fingerprint(MODEL, [(first[0], 0.999)]), MODEL}
    assert len(others) == 4


def test_every_part_of_the_space_keeps_rows_apart():
    tokens = pack_tokens([1, 2, 3])
    spaces = [
        KeySpace(MODEL, 1, b"a" * 32),
        KeySpace(MODEL, 2, b"a" * 32),
        KeySpace(MODEL, 1, b"b" * 32),
        KeySpace(MODEL[::-1], 1, b"a" * 32),
    ]
    assert len({space.key(tokens) for space in spaces}) == len({space.root for space in spaces}) == 4


def test_quant_bytes_are_frozen():
    assert quant_byte("q4_k_m") == 14 and quant_byte("F32") == 0 and quant_byte("MXFP4") == 32
    assert quant_byte("something new") == UNKNOWN_QUANT
    assert sorted(QUANT_BYTES.values()) == list(range(len(QUANT_BYTES)))


def test_chain_gives_the_key_at_every_boundary():
    space = KeySpace(MODEL, 3, b"c" * 32)
    packed = pack_tokens(range(1000, 1021))
    chain = space.chain(8)
    fresh = chain.extend(packed[:20]) + chain.extend(packed[20:40]) + chain.extend(packed[40:])
    assert fresh == chain.block_keys == [space.key(packed[:32]), space.key(packed[:64])]
    assert chain.key() == space.key(packed) and chain.num_tokens == 21 and chain.boundary() == 16
    assert [chain.boundary_key(at) for at in (0, 8, 16)] == [space.root, *chain.block_keys]


def test_a_forked_chain_goes_its_own_way():
    space = KeySpace(MODEL, 3, b"c" * 32)
    chain = space.chain(4)
    chain.extend(pack_tokens([1, 2, 3, 4, 5]))
    twin = chain.copy()
    chain.extend(pack_tokens([6, 7, 8]))
    twin.extend(pack_tokens([9, 9, 9]))
    assert chain.key() == space.key(pack_tokens([1, 2, 3, 4, 5, 6, 7, 8]))
    assert twin.key() == space.key(pack_tokens([1, 2, 3, 4, 5, 9, 9, 9]))
    assert chain.block_keys[0] == twin.block_keys[0] and chain.block_keys[1] != twin.block_keys[1]
