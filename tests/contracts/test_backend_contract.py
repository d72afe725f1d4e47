"""What every backend must do, whatever computes: one suite over the stub and llama.cpp, over every kind of state."""

import threading

import numpy as np
import pytest

from erllama_host.errors import InvalidRequest
from erllama_host.kv.keys import ContextShape, ctx_params_hash
from erllama_host.protocol.inference import SamplingParams
from tests.support import ggufs
from tests.support.backends import (
    GREEDY,
    Blob,
    feed,
    greedy,
    open_gguf_backend,
    open_stub_backend,
    rows_of,
    some_tokens,
)
from workers.backend.base import DecodeStatus, KvMode, PieceKind, Rows

OPENERS = {
    "stub-attention": lambda **config: open_stub_backend(config=config),
    "stub-recurrent": lambda **config: open_stub_backend(config=config, kind="recurrent"),
    "stub-hybrid": lambda **config: open_stub_backend(config=config, kind="hybrid"),
    "llama-attention": lambda **config: open_gguf_backend(ggufs.tiny("attention"), **config),
    "llama-window-full": lambda **config: open_gguf_backend(ggufs.tiny("window"), swa_full=True, **config),
    "llama-window-small": lambda **config: open_gguf_backend(ggufs.tiny("window"), swa_full=False, **config),
    "llama-mamba": lambda **config: open_gguf_backend(ggufs.tiny("mamba"), **config),
    "llama-jamba": lambda **config: open_gguf_backend(ggufs.tiny("jamba"), **config),
    "llama-lfm2": lambda **config: open_gguf_backend(ggufs.tiny("lfm2"), **config),
}
NOISE = 0.01
"""Logits move by up to 0.003 with cells, extent and batch shape; one other token 100 positions back moves them by 0.025
(mamba) to 0.5. Where the shapes are the same, bits are compared."""


def close(left, right):
    return float(np.abs(left - right).max()) < NOISE


CAN_SHARE_ANYWHERE = {"stub-attention", "llama-attention", "llama-window-full"}
ATTENTION = ["stub-attention", "llama-attention"]
HYBRID = ["stub-hybrid", "llama-jamba", "llama-lfm2"]
WITH_CELLS = [kind for kind in OPENERS if kind not in ("stub-recurrent", "llama-mamba")]


@pytest.fixture(params=OPENERS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """Opens backends of one kind; they are closed after the test."""
    opened = []

    def open_one(**config):
        opened.append(OPENERS[kind](**config))
        return opened[-1]

    yield open_one
    for backend in opened:
        backend.close()


@pytest.fixture
def backend(make):
    return make()


# --- facts ----------------------------------------------------------------------------------------------------------


def test_facts_are_consistent(backend):
    info, limits = backend.info, backend.limits
    assert info.n_vocab == backend.vocabulary.size
    assert info.has_cells or info.has_recurrent
    assert info.can_truncate is not info.has_recurrent
    assert limits.n_ctx == 512 and limits.num_cells == 1024 and limits.num_slots == 4
    assert limits.num_slots < limits.num_seqs
    assert all(backend.vocabulary.is_eog(token) for token in info.eog_ids)
    assert info.chat_template and info.build
    assert isinstance(backend.kv_shape, ContextShape) and len(ctx_params_hash(backend.kv_shape)) == 32


def test_the_kv_shape_knows_the_kv_type(make):
    assert ctx_params_hash(make().kv_shape) != ctx_params_hash(make(type_k="q8_0", type_v="q8_0").kv_shape)


# --- vocabulary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello world", "", "é漢🙂", "a\0b", "line\nline\t  spaces"])
def test_text_survives_the_vocabulary(backend, text):
    ids = backend.vocabulary.tokenize(text, add_special=False)
    assert backend.vocabulary.detokenize(ids) == text
    assert b"".join(map(backend.vocabulary.piece, ids)).decode() == text


def test_special_tokens_in_text_are_read_only_on_request(backend):
    vocabulary = backend.vocabulary
    plain = vocabulary.tokenize("<|im_end|>", add_special=False)
    special = vocabulary.tokenize("<|im_end|>", add_special=False, parse_special=True)
    assert len(plain) == len("<|im_end|>") and vocabulary.detokenize(plain) == "<|im_end|>"
    assert len(special) == 1 and vocabulary.is_eog(special[0])
    assert vocabulary.piece(special[0]) == b"" and vocabulary.special_piece(special[0]) == b"<|im_end|>"


def test_markers_are_visible_text(backend):
    (marker,) = backend.vocabulary.tokenize("<think>", add_special=False, parse_special=True)
    assert backend.vocabulary.piece(marker) == b"<think>" and not backend.vocabulary.is_eog(marker)


@pytest.mark.parametrize("bad", [-1, 10**6, 2**31 - 1])
def test_ids_out_of_range_are_refused_by_name(backend, bad):
    for call in (backend.vocabulary.check_ids, backend.vocabulary.detokenize):
        with pytest.raises(InvalidRequest, match="out of range") as caught:
            call([1, bad])
        assert caught.value.details["field"] == "tokens"


def test_vocabulary_answers_other_threads_during_a_decode(make):
    backend = make(n_ctx=2048, n_cells=4096)
    text = "some words " * 20
    expected = backend.vocabulary.tokenize(text)
    done, wrong = threading.Event(), []

    def ask():
        while not done.is_set():
            ids = backend.vocabulary.tokenize(text)
            if ids != expected or backend.vocabulary.detokenize(ids) != text:
                wrong.append(ids)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    feed(backend, 0, some_tokens(backend, 1500))
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


# --- decoding -------------------------------------------------------------------------------------------------------


def test_same_tokens_give_the_same_logits_and_others_do_not(backend):
    tokens = some_tokens(backend, 40)
    first = feed(backend, 0, tokens)
    backend.clear(0)
    assert np.array_equal(first, feed(backend, 0, tokens))
    changed = [tokens[0] + 1, *tokens[1:]]
    assert not np.array_equal(first, feed(backend, 1, changed))
    assert first.shape == (backend.info.n_vocab,) and np.isfinite(first).all()


def test_sequences_do_not_see_each_other(backend):
    a, b = some_tokens(backend, 20, salt=1), some_tokens(backend, 20, salt=2)
    alone = feed(backend, 0, a)
    backend.clear(0)
    status = backend.decode(rows_of((0, 0, a), (3, 0, b)))
    assert status is DecodeStatus.OK
    assert close(alone, backend.logits(19))
    assert [backend.length(seq) for seq in (0, 3, 1)] == [20, 20, 0]


def test_every_row_can_have_logits(backend):
    tokens = some_tokens(backend, 12)
    assert backend.decode(rows_of((0, 0, tokens), outputs="all")) is DecodeStatus.OK
    last = backend.logits(11).copy()
    middle = backend.logits(5).copy()
    backend.clear(0)
    assert close(last, feed(backend, 0, tokens))
    assert close(middle, feed(backend, 1, tokens[:6]))


def broken_rows(backend):
    good = {
        "tokens": np.array([5, 6, 7], np.int32),
        "positions": np.array([4, 5, 6], np.int32),
        "seqs": np.zeros(3, np.int32),
        "outputs": np.array([False, False, True]),
    }
    limits = backend.limits
    many = limits.max_rows + 1
    yield {name: values[:0] for name, values in good.items()}
    yield {
        "tokens": np.full(many, 5, np.int32),
        "positions": np.arange(4, 4 + many, dtype=np.int32),
        "seqs": np.zeros(many, np.int32),
        "outputs": np.zeros(many, np.bool_),
    }
    yield good | {"tokens": good["tokens"][:2]}
    yield good | {"tokens": np.array([5, -1, 7], np.int32)}
    yield good | {"tokens": np.array([5, backend.info.n_vocab, 7], np.int32)}
    yield good | {"seqs": np.full(3, limits.num_seqs, np.int32)}
    yield good | {"seqs": np.full(3, -1, np.int32)}
    yield good | {"positions": np.array([3, 4, 5], np.int32)}
    yield good | {"positions": np.array([5, 6, 7], np.int32)}
    yield good | {"positions": np.array([4, 4, 5], np.int32)}
    yield good | {"positions": np.array([4, 6, 7], np.int32)}
    yield good | {"seqs": np.array([0, 1, 0], np.int32), "positions": np.array([4, 0, 5], np.int32)}
    wide = limits.max_outputs + 1
    yield {
        "tokens": np.full(wide, 5, np.int32),
        "positions": np.arange(4, 4 + wide, dtype=np.int32),
        "seqs": np.zeros(wide, np.int32),
        "outputs": np.ones(wide, np.bool_),
    }


def test_rows_that_would_harm_are_refused_and_change_nothing(backend):
    feed(backend, 0, some_tokens(backend, 4))
    for broken in broken_rows(backend):
        with pytest.raises(AssertionError):
            backend.decode(Rows(**broken))
        assert [backend.length(seq) for seq in range(backend.limits.num_seqs)] == [4] + [0] * (
            backend.limits.num_seqs - 1
        )
    assert np.isfinite(feed(backend, 0, some_tokens(backend, 1))).all()


def test_a_sequence_may_not_exceed_n_ctx(backend):
    feed(backend, 0, some_tokens(backend, backend.limits.n_ctx))
    with pytest.raises(AssertionError, match="n_ctx"):
        feed(backend, 0, [5])


def test_logits_of_other_rows_are_refused(backend):
    feed(backend, 0, some_tokens(backend, 4))
    sampler = backend.make_sampler(GREEDY, 1)
    for row in (0, 2, 4, -1):
        with pytest.raises(AssertionError):
            backend.logits(row)
        with pytest.raises(AssertionError):
            sampler.sample(row)
    sampler.close()


def test_no_free_cells_is_a_status_and_recoverable(make):
    backend = make(n_ctx=512, n_cells=512)
    tokens = some_tokens(backend, 400)
    feed(backend, 0, tokens)
    status = backend.decode(rows_of((1, 0, tokens)))
    if not backend.info.has_cells:
        assert status is DecodeStatus.OK
        return
    assert status is DecodeStatus.NO_SPACE
    assert (backend.length(0), backend.length(1)) == (400, 0)
    backend.clear(0)
    assert np.isfinite(feed(backend, 1, tokens)).all()


def test_abort_stops_one_decode(backend):
    tokens = some_tokens(backend, 30)
    feed(backend, 0, tokens[:10])
    backend.abort()
    assert backend.decode(rows_of((0, 10, tokens[10:]))) is DecodeStatus.ABORTED
    assert backend.length(0) == (10 if backend.info.can_truncate else 0)
    backend.clear(0)
    again = feed(backend, 0, tokens)
    backend.clear(0)
    assert np.array_equal(again, feed(backend, 0, tokens))


def test_an_abort_can_be_taken_back(backend):
    backend.abort()
    backend.abort()
    backend.clear_abort()
    assert backend.decode(rows_of((0, 0, [5, 6]))) is DecodeStatus.OK


# --- sequences ------------------------------------------------------------------------------------------------------


def test_sharing_gives_the_same_continuation(backend, kind):
    tokens = some_tokens(backend, 50)
    feed(backend, 0, tokens)
    assert backend.share(0, 1, 50) is (kind != "llama-window-small")
    if kind == "llama-window-small":
        assert backend.length(1) == 0
        return
    assert backend.length(1) == 50
    expected = feed(backend, 0, [7])
    assert close(expected, feed(backend, 1, [7]))
    backend.clear(0)
    assert (backend.length(0), backend.length(1)) == (0, 51)
    assert np.isfinite(feed(backend, 1, [8])).all()


def test_sharing_a_part_where_the_model_can_be_cut(backend, kind):
    tokens = some_tokens(backend, 50)
    feed(backend, 0, tokens)
    assert backend.share(0, 1, 30) is (kind in CAN_SHARE_ANYWHERE)
    if kind in CAN_SHARE_ANYWHERE:
        continued = feed(backend, 1, [7])
        assert close(continued, feed(backend, 2, [*tokens[:30], 7]))
    else:
        assert backend.length(1) == 0
    assert backend.length(0) == 50


def test_truncation_leaves_the_prefix_or_refuses(backend):
    tokens = some_tokens(backend, 40)
    feed(backend, 0, tokens)
    assert backend.truncate(0, 40) and backend.length(0) == 40
    assert backend.truncate(0, 25) is backend.info.can_truncate
    if backend.info.can_truncate:
        continued = feed(backend, 0, [9])
        assert close(continued, feed(backend, 1, [*tokens[:25], 9]))
    else:
        assert backend.length(0) == 40
    assert backend.truncate(0, 0) and backend.length(0) == 0


@pytest.mark.parametrize("kind", ATTENTION, indirect=True)
def test_shared_cells_are_used_once_and_freed_with_the_last_owner(make):
    backend = make(n_ctx=256, n_cells=512)
    tokens = some_tokens(backend, 250)
    feed(backend, 0, tokens)
    for seq in range(1, 6):
        assert backend.share(0, seq, 250)
    feed(backend, 6, tokens[:200])
    assert backend.decode(rows_of((7, 0, tokens[:200]))) is DecodeStatus.NO_SPACE
    for seq in range(6):
        backend.clear(seq)
    assert backend.decode(rows_of((7, 0, tokens[:200]))) is DecodeStatus.OK


def test_a_retained_sequence_goes_on_as_before(backend):
    tokens = some_tokens(backend, 100)
    feed(backend, 0, tokens)
    backend.retain(0)
    backend.retain(0)
    for seq in range(1, 4):
        feed(backend, seq, some_tokens(backend, 150, salt=seq))
    assert backend.length(0) == 100
    continued = feed(backend, 0, [9])
    for seq in range(1, 4):
        backend.clear(seq)
    assert close(continued, feed(backend, 4, [*tokens, 9]))


# --- stored state ---------------------------------------------------------------------------------------------------


def pieces_of(backend, seq, tokens, block=16):
    """Feed `tokens` and pack as a worker would: blocks as they complete, at the end what makes the state usable."""
    blobs = []
    snapshot_start = 0
    for start in range(0, len(tokens), block):
        end = min(start + block, len(tokens))
        feed(backend, seq, tokens[start:end])
        last = end == len(tokens)
        if backend.info.has_cells and not (last and backend.info.has_recurrent):
            blobs.append(Blob(backend, seq, start, end))
            snapshot_start = end
    if backend.info.has_recurrent:
        start = snapshot_start if backend.info.has_cells else 0
        blobs.append(Blob(backend, seq, start, len(tokens), PieceKind.SNAPSHOT))
    assert all(blob.packed == blob.size > 0 for blob in blobs)
    return blobs


def test_the_self_check_finds_the_right_mode_and_leaves_nothing(backend):
    assert backend.kv_mode is KvMode.UNCACHED
    verdict = backend.self_check()
    assert verdict.mode is (KvMode.SEGMENTS if backend.info.can_truncate else KvMode.SNAPSHOTS), verdict.reason
    assert backend.kv_mode is verdict.mode
    assert all(backend.length(seq) == 0 for seq in range(backend.limits.num_seqs))


@pytest.mark.parametrize("count", [16, 40, 200])
def test_restored_state_continues_bit_for_bit(backend, count):
    tokens = some_tokens(backend, count)
    blobs = pieces_of(backend, 0, tokens)
    expected = feed(backend, 0, [9])
    backend.clear(0)
    for blob in blobs:
        assert blob.restore(backend, 0)
    assert backend.length(0) == count
    assert np.array_equal(expected, feed(backend, 0, [9]))


def test_packing_leaves_the_sequence_alone(backend):
    tokens = some_tokens(backend, 40)
    feed(backend, 0, tokens)
    expected = feed(backend, 0, [9])
    backend.clear(0)
    pieces_of(backend, 0, tokens)
    assert backend.length(0) == 40
    assert close(expected, feed(backend, 0, [9]))


def test_a_restore_can_stop_inside_a_cuttable_piece(backend):
    tokens = some_tokens(backend, 48)
    blobs = pieces_of(backend, 0, tokens)
    cuttable = [backend.cuttable(blob.start, blob.end, blob.kind) for blob in blobs]
    assert all(cuttable) if backend.info.can_truncate else not any(cuttable)
    if not backend.info.can_truncate:
        with pytest.raises(AssertionError):
            blobs[-1].restore(backend, 1, use_end=blobs[-1].end - 1)
        return
    backend.clear(0)
    assert blobs[0].restore(backend, 0) and blobs[1].restore(backend, 0, use_end=23)
    assert backend.length(0) == 23
    assert close(feed(backend, 0, [9]), feed(backend, 1, [*tokens[:23], 9]))


def test_pieces_can_go_to_another_sequence_beside_others(backend):
    tokens = some_tokens(backend, 32)
    blobs = pieces_of(backend, 0, tokens)
    feed(backend, 2, some_tokens(backend, 30, salt=5))
    for blob in blobs:
        assert blob.restore(backend, 1)
    assert close(feed(backend, 0, [9]), feed(backend, 1, [9]))
    assert backend.length(2) == 30


def test_bytes_that_are_no_such_piece_are_refused(backend):
    tokens = some_tokens(backend, 32)
    blobs = pieces_of(backend, 0, tokens)
    first, last = blobs[0], blobs[-1]
    backend.clear(0)
    whole = first.kind is PieceKind.SNAPSHOT
    before = (first.size, first.end, bytes(first.buffer))
    assert not backend.restore(0, 0, first.end, first.kind, first.address, first.size - 1, first.end)
    assert not backend.restore(0, 0, first.end, first.kind, first.address, 4, first.end)
    assert not backend.restore(0, 0, first.end + 1, first.kind, first.address, first.size, first.end + 1)
    if not whole:
        assert not backend.restore(
            0, 0, last.end - last.start, last.kind, last.address, last.size, last.end - last.start
        )
    for offset in (*range(4), *range(8, 16)):  # between them, llama.cpp notes a sequence id that means nothing
        first.buffer[offset] ^= 0xFF
        assert not first.restore(backend, 0), f"flipped byte {offset}"
        first.buffer[offset] ^= 0xFF
    assert before == (first.size, first.end, bytes(first.buffer))
    assert backend.length(0) == 0
    assert first.restore(backend, 0), "the piece itself is still good, and no refused one left anything behind"


def test_ranges_that_cannot_be_packed_give_zero(backend):
    feed(backend, 0, some_tokens(backend, 20))
    kind = PieceKind.CELLS if backend.info.has_cells else PieceKind.SNAPSHOT
    assert backend.piece_size(0, 0, 21, kind) == 0
    assert backend.piece_size(1, 0, 5, kind) == 0
    size = backend.piece_size(0, 0, 20, kind)
    blob = Blob(backend, 0, 0, 20, kind)
    assert size == blob.size > 0
    assert backend.pack(0, 0, 20, kind, blob.address, size - 1) == 0
    if backend.info.has_recurrent:
        assert backend.piece_size(0, 0, 19, PieceKind.SNAPSHOT) == 0, "a snapshot is of the very end"


@pytest.mark.parametrize("kind", HYBRID, indirect=True)
def test_cells_without_their_snapshot_cannot_be_used(backend):
    blobs = pieces_of(backend, 0, some_tokens(backend, 40))
    assert blobs[0].restore(backend, 1) and backend.length(1) == 16
    with pytest.raises(AssertionError, match="snapshot"):
        feed(backend, 1, [9])
    assert not backend.share(1, 2, 16)
    assert backend.piece_size(1, 0, 16, PieceKind.CELLS) == 0
    backend.clear(1)
    assert backend.length(1) == 0
    assert np.isfinite(feed(backend, 1, [9])).all()


@pytest.mark.parametrize("kind", WITH_CELLS, indirect=True)
def test_a_restore_without_free_cells_is_refused(make):
    backend = make(n_ctx=512, n_cells=512)
    tokens = some_tokens(backend, 60)
    blobs = pieces_of(backend, 0, tokens, block=60)
    backend.clear(0)
    feed(backend, 1, some_tokens(backend, 500, salt=3))
    assert not blobs[0].restore(backend, 0)
    assert backend.length(0) == 0 and backend.length(1) == 500
    backend.clear(1)
    assert blobs[0].restore(backend, 0)


# --- sampling -------------------------------------------------------------------------------------------------------


def answer(backend, params, tokens, count, seed=1, seq=0):
    """`count` sampled tokens after `tokens`."""
    backend.clear(seq)
    sampler = backend.make_sampler(params, seed)
    sampler.prime(tokens)
    feed(backend, seq, tokens)
    row, chosen = len(tokens) - 1, []
    for _ in range(count):
        chosen.append(sampler.sample(row))
        feed(backend, seq, chosen[-1:])
        row = 0
    sampler.close()
    return chosen


def test_greedy_sampling_is_the_argmax(backend):
    tokens = some_tokens(backend, 10)
    expected = greedy(backend, 1, tokens, 12)
    assert answer(backend, GREEDY, tokens, 12) == expected


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=7),
        SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05, typical_p=0.9, seed=7),
        SamplingParams(temperature=1.5, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5, seed=7),
        SamplingParams(temperature=1.0, seed=2**32 - 1),
    ],
    ids=["temperature", "cuts", "penalties", "largest-seed"],
)
def test_seeds_make_answers_repeatable_and_different(backend, params):
    tokens = some_tokens(backend, 10)
    first = answer(backend, params, tokens, 16)
    assert first == answer(backend, params, tokens, 16, seed=99), "params.seed goes before the other"
    other = {name: getattr(params, name) for name in params.__struct_fields__} | {"seed": 8}
    assert first != answer(backend, SamplingParams(**other), tokens, 16)


def test_the_given_seed_is_used_where_the_parameters_have_none(backend):
    tokens, params = some_tokens(backend, 10), SamplingParams(temperature=1.0)
    assert answer(backend, params, tokens, 16, seed=5) == answer(backend, params, tokens, 16, seed=5)
    assert answer(backend, params, tokens, 16, seed=5) != answer(backend, params, tokens, 16, seed=6)


def test_stored_logits_give_the_same_choice_and_stay_as_they_are(backend):
    params = SamplingParams(temperature=0.9, top_k=30, top_p=0.95, repetition_penalty=1.1, seed=3)
    tokens = some_tokens(backend, 10)
    stored = feed(backend, 0, tokens)
    before = stored.copy()
    live, late = backend.make_sampler(params, 1), backend.make_sampler(params, 1)
    for _ in range(8):
        assert live.sample(9) == late.sample_from(stored)
    assert np.array_equal(stored, before)
    live.close()
    late.close()


def test_a_replayed_answer_goes_on_as_the_first_one_did(backend):
    params = SamplingParams(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.3, seed=3)
    tokens = some_tokens(backend, 10)
    whole = answer(backend, params, tokens, 20)
    resumed = backend.make_sampler(params, 1)
    resumed.prime(tokens)
    resumed.replay(whole[:12])
    backend.clear(0)
    feed(backend, 0, tokens)
    for token in whole[:12]:
        feed(backend, 0, [token])
    rest = []
    for _ in range(8):
        rest.append(resumed.sample(0))
        feed(backend, 0, rest[-1:])
    resumed.close()
    assert rest == whole[12:]


def test_biases_ban_and_force(backend):
    tokens = some_tokens(backend, 10)
    (favourite,) = answer(backend, GREEDY, tokens, 1)
    banned = SamplingParams(logit_bias={str(favourite): float("-inf")})
    assert answer(backend, banned, tokens, 1) != [favourite]
    forced = SamplingParams(logit_bias={"42": 1000.0}, temperature=1.0)
    assert answer(backend, forced, tokens, 3) == [42, 42, 42]
    with pytest.raises(InvalidRequest, match="out of range") as caught:
        backend.make_sampler(SamplingParams(logit_bias={str(backend.info.n_vocab): 1.0}), 1)
    assert caught.value.details["field"] == "logit_bias"


def test_penalties_count_primed_tokens(backend):
    tokens = some_tokens(backend, 10)
    (favourite,) = answer(backend, GREEDY, tokens, 1)
    stored = feed(backend, 1, tokens)
    sampler = backend.make_sampler(SamplingParams(presence_penalty=2.0, frequency_penalty=2.0), 1)
    sampler.prime([favourite] * 10)
    assert sampler.sample_from(stored) != favourite
    sampler.close()
    sampler.close()


# --- memory, adapters, embeddings ------------------------------------------------------------------------------------


def test_a_dropped_context_comes_back_empty_and_works(backend):
    tokens = some_tokens(backend, 30)
    expected = greedy(backend, 0, tokens, 5)
    sampler = backend.make_sampler(GREEDY, 1)
    assert backend.has_context and backend.footprint().host_context_bytes > 0
    backend.drop_context()
    backend.drop_context()
    assert not backend.has_context and backend.footprint().host_context_bytes == 0
    assert backend.length(0) == 0 and backend.vocabulary.tokenize("x")
    backend.clear(0)
    assert backend.truncate(0, 0)
    backend.ensure_context()
    backend.ensure_context()
    assert backend.has_context
    assert greedy(backend, 0, tokens, 5) == expected
    feed(backend, 1, tokens)
    assert sampler.sample(len(tokens) - 1) == expected[0], "a sampler outlives the context it was made with"
    sampler.close()


def test_restoring_makes_a_dropped_context_again(backend):
    tokens = some_tokens(backend, 32)
    blobs = pieces_of(backend, 0, tokens)
    expected = feed(backend, 0, [9])
    backend.drop_context()
    for blob in blobs:
        assert blob.restore(backend, 2)
    assert np.array_equal(expected, feed(backend, 2, [9]))


def test_closing_twice_is_fine(make):
    backend = make()
    backend.close()
    backend.close()


def test_bad_adapter_files_are_clear_errors(backend):
    for path in (ggufs.scratch_path("missing.gguf"), ggufs.text_file()):
        with pytest.raises(InvalidRequest, match="adapter") as caught:
            backend.load_adapter(str(path))
        assert caught.value.details["field"] == "path"


def test_embedding_limits_are_clear_errors(backend):
    most = backend.limits.max_embed_tokens
    for ids in ([], [5] * (most + 1), [-1]):
        with pytest.raises(InvalidRequest) as caught:
            backend.embed([ids], normalize=True)
        assert caught.value.details["field"] == "tokens"
