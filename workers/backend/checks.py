"""Checks of calls on a backend, shared by the implementations. Pure.

llama.cpp ends the process on some of these mistakes and silently computes nonsense on the others (a gap in positions, a
duplicate), so every decode passes here first. Many rows are checked as arrays, about 60 µs however many they are; a handful,
which is what most steps of a busy day have, row by row: 1 µs each.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from erllama_host.errors import InvalidRequest
from workers.backend.values import ContextLimits, ModelFacts, PieceKind, Rows

FEW_ROWS = 32


def check_rows(rows: Rows, limits: ContextLimits, n_vocab: int, length: Callable[[int], int]) -> list[tuple[int, int]]:
    """Assert that `rows` may be decoded, and return the sequences in it with their lengths before.

    Args:
        length: tokens a sequence has now.
    """
    num_rows = len(rows.tokens)
    assert 0 < num_rows <= limits.max_rows, f"{num_rows} rows, allowed are 1 to {limits.max_rows}"
    sizes = {len(rows.positions), len(rows.seqs), len(rows.outputs)}
    assert sizes == {num_rows}, f"row arrays of different lengths: {num_rows} tokens, others {sizes}"
    num_outputs = int(np.count_nonzero(rows.outputs))
    assert num_outputs <= limits.max_outputs, f"{num_outputs} outputs, allowed are {limits.max_outputs}"
    if num_rows <= FEW_ROWS:
        return _check_few(rows, limits, n_vocab, length)
    assert int(rows.tokens.min()) >= 0 and int(rows.tokens.max()) < n_vocab, "token id out of range"
    assert int(rows.seqs.min()) >= 0 and int(rows.seqs.max()) < limits.num_seqs, "sequence id out of range"
    return _check_runs(rows, limits, length)


def _check_few(rows: Rows, limits: ContextLimits, n_vocab: int, length: Callable[[int], int]) -> list[tuple[int, int]]:
    first: dict[int, int] = {}
    counts: dict[int, int] = {}
    before = -1
    for token, position, seq in zip(rows.tokens.tolist(), rows.positions.tolist(), rows.seqs.tolist(), strict=True):
        assert 0 <= token < n_vocab, "token id out of range"
        assert 0 <= seq < limits.num_seqs, "sequence id out of range"
        if seq in counts:
            assert seq == before, "rows of one sequence are not neighbours"
            assert position == first[seq] + counts[seq], "positions of a sequence are not consecutive"
            counts[seq] += 1
        else:
            first[seq], counts[seq] = position, 1
        before = seq
    return [_check_run(seq, first[seq], counts[seq], limits, length) for seq in counts]


def _check_runs(rows: Rows, limits: ContextLimits, length: Callable[[int], int]) -> list[tuple[int, int]]:
    same_seq = rows.seqs[1:] == rows.seqs[:-1]
    starts = np.concatenate(([0], np.flatnonzero(~same_seq) + 1))
    ends = np.concatenate((starts[1:], [len(rows)]))
    steps = np.diff(rows.positions)
    assert bool(np.all(steps[same_seq] == 1)), "positions of a sequence are not consecutive"
    seqs = rows.seqs[starts]
    assert len(np.unique(seqs)) == len(seqs), "rows of one sequence are not neighbours"
    return [
        _check_run(int(seq), int(rows.positions[start]), int(end - start), limits, length)
        for seq, start, end in zip(seqs, starts, ends, strict=True)
    ]


def _check_run(
    seq: int, position: int, num_rows: int, limits: ContextLimits, length: Callable[[int], int]
) -> tuple[int, int]:
    have = length(seq)
    assert position == have, f"sequence {seq} has {have} tokens, its first row is at position {position}"
    assert have + num_rows <= limits.n_ctx, (
        f"sequence {seq} would have {have + num_rows} tokens, n_ctx is {limits.n_ctx}"
    )
    return seq, have


def check_piece(start: int, end: int, kind: PieceKind, info: ModelFacts) -> None:
    """Assert that such a piece can exist for this model."""
    assert 0 <= start < end, f"piece [{start}, {end}) is empty or negative"
    if kind is PieceKind.CELLS:
        assert info.has_cells, "this model has no attention cells"
    elif not info.has_cells:
        assert start == 0, "a snapshot of a recurrent model starts at 0"


def check_ids(ids: Sequence[int], n_vocab: int) -> None:
    """Raise InvalidRequest unless every id is in `[0, n_vocab)`."""
    if not len(ids):
        return
    worst = min(ids) if min(ids) < 0 else max(ids)
    if not 0 <= worst < n_vocab:
        raise InvalidRequest(f"token id {worst} is out of range, this model has ids 0 to {n_vocab - 1}", field="tokens")


def check_embed_texts(texts: Sequence[Sequence[int]], limits: ContextLimits, n_vocab: int) -> None:
    """Raise InvalidRequest unless every text can be embedded in one computation."""
    for ids in texts:
        if not 0 < len(ids) <= limits.max_embed_tokens:
            raise InvalidRequest(
                f"a text to embed must have 1 to {limits.max_embed_tokens} tokens (n_ubatch), got {len(ids)}",
                field="tokens",
            )
        check_ids(ids, n_vocab)


def check_bias(bias: Mapping[str, float], n_vocab: int) -> None:
    """Raise InvalidRequest, naming `logit_bias`, unless every biased token exists."""
    for token in bias:
        if int(token) >= n_vocab:
            raise InvalidRequest(
                f"logit_bias: token id {token} is out of range, this model has ids 0 to {n_vocab - 1}",
                field="logit_bias",
            )
