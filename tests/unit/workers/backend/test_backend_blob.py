"""The layout of stored pieces, on pieces built by hand."""

import ctypes
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.backend.llama.blob import Layout, read_blob

QUIET = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PREFIX = b"\x00ggs" + struct.pack("<i", 3)
PLAIN = Layout(1, 12, True, False)
WINDOW = Layout(2, 12, True, False)
HYBRID = Layout(1, 12, True, True)
RECURRENT = Layout(0, 0, True, True)


def cell_part(positions, *, layers=2, row_bytes=8, record_bytes=12, values=True, streams=1, owners=1, transposed=0):
    """`row_bytes`: of every layer, or one number per layer."""
    part = struct.pack("<II", streams, len(positions))
    if not len(positions):
        return part
    for position in positions:
        part += struct.pack("<iI", position, owners) + b"\0" * (record_bytes - 12) + struct.pack("<i", 3)
    sizes = [row_bytes] * layers if isinstance(row_bytes, int) else row_bytes
    part += struct.pack("<II", transposed, len(sizes))
    rows = b"".join(struct.pack("<iQ", 1, size) + b"\x07" * (size * len(positions)) for size in sizes)
    return part + rows * (2 if values else 1)


def state_part(position):
    return struct.pack("<I", 0) if position is None else struct.pack("<IiI", 1, position, 0) + b"state bytes"


def read(data, *layouts):
    buffer = ctypes.create_string_buffer(data, len(data))
    return read_blob(ctypes.addressof(buffer), len(data), layouts)


def test_a_complete_piece_is_exactly_its_range():
    contents = read(PREFIX + cell_part(range(32, 48)), PLAIN)
    assert contents.is_exactly(32, 48, 0, with_state=False)
    for start, end in ((32, 47), (33, 48), (31, 48), (0, 16)):
        assert not contents.is_exactly(start, end, 0, with_state=False)
    assert not contents.is_exactly(32, 48, 0, with_state=True)


@pytest.mark.parametrize("positions", [[0, 1, 3], [0, 1, 1], [0, 1, 2, 2], [-1, 0, 1]])
def test_holes_and_doubles_are_seen(positions):
    contents = read(PREFIX + cell_part(positions), PLAIN)
    assert not contents.is_exactly(0, 3, 0, with_state=False)


def test_cells_may_come_in_any_order():
    assert read(PREFIX + cell_part([2, 0, 1]), PLAIN).is_exactly(0, 3, 0, with_state=False)


def test_a_window_part_must_hold_the_end_of_the_range():
    full = read(PREFIX + cell_part(range(20)) + cell_part(range(12, 20)), WINDOW)
    assert full.is_exactly(0, 20, 8, with_state=False) and not full.is_exactly(0, 20, 16, with_state=False)
    holed = read(PREFIX + cell_part(range(20)) + cell_part([*range(12, 16), *range(17, 20)]), WINDOW)
    assert not holed.is_exactly(0, 20, 8, with_state=False)


def test_recurrent_state_has_a_position():
    with_state = read(PREFIX + cell_part(range(5)) + state_part(4), HYBRID)
    assert with_state.is_exactly(0, 5, 0, with_state=True) and not with_state.is_exactly(0, 5, 0, with_state=False)
    without = read(PREFIX + cell_part(range(5)) + state_part(None), HYBRID)
    assert without.is_exactly(0, 5, 0, with_state=False) and not without.is_exactly(0, 5, 0, with_state=True)
    assert read(PREFIX + state_part(9), RECURRENT).is_exactly(0, 10, 0, with_state=True)
    assert not read(PREFIX + state_part(8), RECURRENT).is_exactly(0, 10, 0, with_state=True)


def test_the_layout_is_found_by_its_end():
    data = PREFIX + cell_part(range(4), record_bytes=20, values=False)
    variants = [Layout(1, record, values, False) for record in (12, 20) for values in (True, False)]
    assert read(data, *variants).is_exactly(0, 4, 0, with_state=False)
    assert read(data, PLAIN) is None


@pytest.mark.parametrize("row_bytes", [[8, 8, 8], [8, 8, 24], [24, 8, 8], [8], []])
def test_layers_may_differ_in_size(row_bytes):
    data = PREFIX + cell_part(range(4), row_bytes=row_bytes)
    assert read(data, PLAIN).is_exactly(0, 4, 0, with_state=False)
    assert read(data + b"\0", PLAIN) is None and read(data[:-1], PLAIN) is None


@pytest.mark.parametrize("change", [{"streams": 2}, {"owners": 0}, {"owners": 2}, {"transposed": 1}, {"layers": 5000}])
def test_numbers_that_make_no_sense_are_no_piece(change):
    assert read(PREFIX + cell_part(range(4), **change), PLAIN) is None


@QUIET
@given(st.binary(max_size=200))
def test_any_bytes_can_be_looked_at(data):
    for layout in (PLAIN, WINDOW, HYBRID, RECURRENT):
        contents = read(data, layout)
        assert contents is None or all(positions.dtype == np.int32 for positions in contents.cells)


@QUIET
@given(cut=st.integers(0, 60))
def test_a_piece_that_ends_early_is_none(cut):
    data = PREFIX + cell_part(range(3), layers=1)
    assert (read(data[: len(data) - cut], PLAIN) is None) == (cut > 0)
