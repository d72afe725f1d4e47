"""Stored and shared state on real llama.cpp: exact where it says so, refused where it cannot be."""

import numpy as np
import pytest

from tests.support import ggufs, models
from tests.support.backends import Blob, feed, open_gguf_backend, rows_of, some_tokens
from workers.backend.base import DecodeStatus, KvMode, PieceKind

pytestmark = pytest.mark.model
WINDOW = ggufs.WINDOW


@pytest.fixture
def opened():
    """Opens backends; they are closed after the test."""
    backends = []

    def open_one(path, **config):
        backends.append(open_gguf_backend(path, **config))
        return backends[-1]

    yield open_one
    for backend in backends:
        backend.close()


def pack_as_completed(backend, seq, tokens, block):
    """Feed `tokens` block by block, packing each in the step that completes it."""
    blobs = []
    for start in range(0, len(tokens), block):
        feed(backend, seq, tokens[start : start + block])
        blobs.append(Blob(backend, seq, start, min(start + block, len(tokens))))
    return blobs


def test_smollm2_restores_bit_for_bit(opened):
    backend = opened(models.smollm2(), n_ctx=512, n_cells=1024)
    assert backend.self_check().mode is KvMode.SEGMENTS
    tokens = backend.vocabulary.tokenize("A lighthouse keeper counts ships. " * 12)[:80]
    blobs = pack_as_completed(backend, 0, tokens, 32)
    expected = feed(backend, 0, [17])
    backend.clear(0)
    assert all(blob.restore(backend, 0) for blob in blobs)
    assert np.array_equal(expected, feed(backend, 0, [17]))


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0", "f32"])
def test_quantised_kv_restores_bit_for_bit(opened, kv_type):
    backend = opened(ggufs.tiny("attention"), type_k=kv_type, type_v=kv_type)
    tokens = some_tokens(backend, 50)
    blobs = pack_as_completed(backend, 0, tokens, 16)
    expected = feed(backend, 0, [9])
    backend.clear(0)
    assert all(blob.restore(backend, 0) for blob in blobs)
    assert np.array_equal(expected, feed(backend, 0, [9]))


def test_kv_of_another_type_or_model_is_refused(opened):
    first = opened(ggufs.tiny("attention"))
    feed(first, 0, some_tokens(first, 16))
    blob = Blob(first, 0, 0, 16)
    for other in (opened(ggufs.tiny("attention"), type_k="q8_0"), opened(ggufs.tiny("window"))):
        assert not blob.restore(other, 0)
        assert other.length(0) == 0
        assert np.isfinite(feed(other, 0, [9])).all()


@pytest.mark.parametrize("swa_full", [True, False])
@pytest.mark.parametrize("block", [16, WINDOW])
def test_a_sliding_window_restores_bit_for_bit_past_the_window(opened, swa_full, block):
    backend = opened(ggufs.tiny("window"), swa_full=swa_full)
    tokens = some_tokens(backend, 4 * WINDOW)
    blobs = pack_as_completed(backend, 0, tokens, block)
    expected = [feed(backend, 0, [token]) for token in (9, 10, 11)]
    backend.clear(0)
    assert all(blob.restore(backend, 0) for blob in blobs)
    assert backend.length(0) == 4 * WINDOW
    assert all(
        np.array_equal(want, feed(backend, 0, [token])) for want, token in zip(expected, (9, 10, 11), strict=True)
    )


def test_a_window_restore_can_stop_anywhere(opened):
    backend = opened(ggufs.tiny("window"))
    tokens = some_tokens(backend, 4 * WINDOW)
    blobs = pack_as_completed(backend, 0, tokens, 32)
    for use_end in (3 * WINDOW + 1, 3 * WINDOW + 31):
        backend.clear(0)
        backend.clear(1)
        assert all(blob.restore(backend, 0, use_end=min(use_end, blob.end)) for blob in blobs if blob.start < use_end)
        assert backend.length(0) == use_end
        difference = np.abs(feed(backend, 0, [9]) - feed(backend, 1, [*tokens[:use_end], 9])).max()
        assert difference < 0.01


def test_a_small_window_cache_gives_up_blocks_that_are_packed_too_late(opened):
    backend = opened(ggufs.tiny("window"), swa_full=False, n_ubatch=64, n_cells=2048, n_ctx=2048, n_seq_max=1)
    tokens = some_tokens(backend, 1700)
    feed(backend, 0, tokens)
    late = [Blob(backend, 0, start, start + 32) for start in range(0, 1700 - 32, 32)]
    assert late[0].packed == 0, "cells of the first block are gone, so it must not be stored"
    newest = Blob(backend, 0, 1700 - 32, 1700)
    assert newest.packed == newest.size > 0


def test_a_block_longer_than_the_window_serves_at_its_end_only(opened):
    backend = opened(ggufs.tiny("window"))
    tokens = some_tokens(backend, 2 * WINDOW)
    (blob,) = pack_as_completed(backend, 0, tokens, 2 * WINDOW)
    assert not backend.cuttable(0, 2 * WINDOW, PieceKind.CELLS)
    assert backend.cuttable(0, WINDOW, PieceKind.CELLS)
    expected = feed(backend, 0, [9])
    backend.clear(0)
    assert blob.restore(backend, 0)
    assert np.array_equal(expected, feed(backend, 0, [9]))
    with pytest.raises(AssertionError):
        blob.restore(backend, 1, use_end=WINDOW)


VICTIM = 2


def fill(backend):
    """Three sequences of 280 tokens in 1 024 cells; the second of them is the victim."""
    for seq in (1, VICTIM, 3):
        feed(backend, seq, some_tokens(backend, 280, salt=seq))


def take_cells(backend):
    """Decode 310 tokens into the 280 cells before the victim's: the window cache then takes the victim's first ones, which are
    out of its window, although cells are free elsewhere."""
    backend.clear(1)
    feed(backend, 4, some_tokens(backend, 310, salt=4))


def test_a_retained_sequence_keeps_the_cells_of_its_whole_past(opened):
    backend = opened(ggufs.tiny("window"), n_cells=1024)
    fill(backend)
    backend.retain(VICTIM)
    take_cells(backend)
    assert backend.share(VICTIM, 8, 70)
    expected = feed_alone(opened, [*some_tokens(backend, 280, salt=VICTIM)[:70], 9])
    assert np.abs(feed(backend, 8, [9]) - expected).max() < 0.01


def test_a_prefix_whose_window_cells_were_taken_is_not_shared(opened):
    backend = opened(ggufs.tiny("window"), n_cells=1024)
    fill(backend)
    take_cells(backend)
    assert not backend.share(VICTIM, 8, 70)
    assert not backend.truncate(VICTIM, 70)
    assert Blob(backend, VICTIM, 0, 32).packed == 0
    assert backend.length(VICTIM) == 280 and backend.length(8) == 0
    assert backend.share(VICTIM, 8, 280)
    expected = feed_alone(opened, [*some_tokens(backend, 280, salt=VICTIM), 9])
    assert np.abs(feed(backend, 8, [9]) - expected).max() < 0.01


def feed_alone(opened, tokens):
    return feed(opened(ggufs.tiny("window")), 0, tokens)


@pytest.mark.parametrize("kind", ["jamba", "lfm2"])
def test_a_hybrid_without_its_snapshot_would_be_wrong_and_with_it_is_exact(opened, kind):
    backend = opened(ggufs.tiny(kind))
    tokens = some_tokens(backend, 48)
    cells = pack_as_completed(backend, 0, tokens[:32], 16)
    feed(backend, 0, tokens[32:])
    at_the_end = Blob(backend, 0, 32, 48, PieceKind.SNAPSHOT)
    whole = Blob(backend, 0, 0, 48, PieceKind.SNAPSHOT)
    expected = feed(backend, 0, [9])
    for chain in ([*cells, at_the_end], [whole]):
        backend.clear(0)
        assert all(blob.restore(backend, 0) for blob in chain)
        assert np.array_equal(expected, feed(backend, 0, [9]))


def test_flash_attention_off_means_uncached_and_says_so(opened):
    verdict = opened(ggufs.tiny("attention"), flash_attn=False).self_check()
    assert verdict.mode is KvMode.UNCACHED and "flash_attn" in verdict.reason


def test_many_retained_sequences_do_not_leak_cells(opened):
    backend = opened(ggufs.tiny("window"), n_cells=1024)
    for round_ in range(6):
        for seq in range(4):
            tokens = some_tokens(backend, 200, salt=round_ * 10 + seq)
            feed(backend, seq, tokens)
            backend.retain(seq)
        for seq in range(4):
            backend.clear(seq)
    feed(backend, 0, some_tokens(backend, 500))
    assert backend.decode(rows_of((1, 0, some_tokens(backend, 500)))) is DecodeStatus.OK
