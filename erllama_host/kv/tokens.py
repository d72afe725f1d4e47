"""Arithmetic on packed tokens: little-endian u32 ids in `bytes`, as they travel and are stored. Pure.

Packed bytes hash, compare and slice at memory speed; a Python list of ints does none of that.
"""

TOKEN_BYTES = 4


def num_tokens(packed: bytes) -> int:
    """How many tokens `packed` holds."""
    return len(packed) // TOKEN_BYTES


def slice_tokens(packed: bytes, start: int, end: int | None = None) -> bytes:
    """The packed tokens `[start, end)`."""
    return packed[start * TOKEN_BYTES : None if end is None else end * TOKEN_BYTES]


def common_prefix_len(left: bytes, right: bytes) -> int:
    """Number of whole tokens that `left` and `right` begin with in common.

    Bisection over memcmp: a Python loop over the tokens of a block costs 20 µs, this costs under 2.
    """
    low, high = 0, min(len(left), len(right)) // TOKEN_BYTES
    if left[: high * TOKEN_BYTES] == right[: high * TOKEN_BYTES]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low * TOKEN_BYTES : middle * TOKEN_BYTES] == right[low * TOKEN_BYTES : middle * TOKEN_BYTES]:
            low = middle
        else:
            high = middle
    return low
