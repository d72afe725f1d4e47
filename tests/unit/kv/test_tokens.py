"""Arithmetic on packed tokens, against the same done on lists."""

from hypothesis import given
from hypothesis import strategies as st

from erllama_host.kv.tokens import common_prefix_len, num_tokens, slice_tokens
from erllama_host.protocol import pack_tokens, unpack_tokens

ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(ids, ids, ids)
def test_common_prefix_counts_whole_tokens(shared, left, right):
    a, b = shared + left, shared + right
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix_len(pack_tokens(a), pack_tokens(b)) == expected


@given(ids, st.integers(0, 50), st.integers(0, 50))
def test_slices_are_those_of_a_list(tokens, start, end):
    packed = pack_tokens(tokens)
    assert num_tokens(packed) == len(tokens)
    assert unpack_tokens(slice_tokens(packed, start, end)) == tokens[start:end]
    assert unpack_tokens(slice_tokens(packed, start)) == tokens[start:]
