"""Random lives of sequences on every kind of backend: whatever was fed, shared, cut, stored and restored, each sequence goes on
as its tokens alone would. The window backends have few cells and short blocks, so that windows move and cells are fought over.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import ggufs
from tests.support.backends import Blob, feed, open_gguf_backend, open_stub_backend, rows_of, some_tokens
from workers.backend.base import DecodeStatus, PieceKind

NOISE = 0.015
"""Logits move by up to 0.004 with cells, extent and batch shape; a wrong or missing cell moved them by 0.025 and more."""
BLOCK = 16
SEQS = 4
SMALL = {"n_ctx": 256, "n_cells": 512}

OPENERS = {
    "stub-attention": lambda: open_stub_backend(config=SMALL),
    "stub-hybrid": lambda: open_stub_backend(config=SMALL, kind="hybrid"),
    "llama-attention": lambda: open_gguf_backend(ggufs.tiny("attention"), **SMALL),
    "llama-window-full": lambda: open_gguf_backend(ggufs.tiny("window"), **SMALL),
    "llama-window-small": lambda: open_gguf_backend(ggufs.tiny("window"), swa_full=False, **SMALL),
    "llama-mamba": lambda: open_gguf_backend(ggufs.tiny("mamba"), **SMALL),
    "llama-jamba": lambda: open_gguf_backend(ggufs.tiny("jamba"), **SMALL),
}

seqs = st.integers(0, SEQS - 1)


class Lives(RuleBasedStateMachine):
    """The model is a list of tokens per sequence, and the pieces that were stored of them."""

    backend = None
    reference = None

    @initialize()
    def start(self):
        for seq in range(SEQS):
            self.backend.clear(seq)
        self.tokens = [[] for _ in range(SEQS)]
        self.store = {}
        self.salt = 0

    def _room(self, seq, count):
        return len(self.tokens[seq]) + count <= self.backend.limits.n_ctx

    @rule(seq=seqs, count=st.sampled_from([1, BLOCK, 3 * BLOCK + 5, 100]))
    def feed_tokens(self, seq, count):
        """Prefill, storing each block in the step that completes it, as a worker does."""
        self.salt += 1
        left = some_tokens(self.backend, count, salt=self.salt)
        while left and self._room(seq, len(left)):
            have = len(self.tokens[seq])
            part = left[: BLOCK - have % BLOCK]
            status = self.backend.decode(rows_of((seq, have, part)))
            if status is DecodeStatus.NO_SPACE:
                return
            assert status is DecodeStatus.OK
            self.tokens[seq] += part
            left = left[len(part) :]
            self._store_end(seq)

    def _store_end(self, seq):
        tokens = self.tokens[seq]
        info = self.backend.info
        if len(tokens) % BLOCK:
            return
        start = len(tokens) - BLOCK
        kinds = [(PieceKind.CELLS, start)] if info.has_cells else []
        if info.has_recurrent:
            kinds.append((PieceKind.SNAPSHOT, start if info.has_cells else 0))
        for kind, piece_start in kinds:
            blob = Blob(self.backend, seq, piece_start, len(tokens), kind)
            assert blob.packed == blob.size > 0, "what was just completed can be stored"
            self.store[tuple(tokens), kind] = blob

    @precondition(lambda self: self.store)
    @rule(seq=seqs, data=st.data(), drop=st.integers(0, BLOCK - 1))
    def restore(self, seq, data, drop):
        """Bring back a stored chain, cut short where the last piece can be."""
        tokens = list(data.draw(st.sampled_from(sorted(key for key, _ in self.store))))
        self.backend.clear(seq)
        self.tokens[seq] = []
        chain = self._chain(tokens)
        last = chain[-1]
        drop = drop if self.backend.cuttable(last.start, last.end, last.kind) else 0
        for blob in chain:
            if not blob.restore(self.backend, seq, use_end=blob.end - (drop if blob is last else 0)):
                # No free cells, which only cells can lack: what is there is a prefix, or nothing.
                assert self.backend.info.has_cells
                self.backend.clear(seq)
                return
        self.tokens[seq] = tokens[: len(tokens) - drop]

    def _chain(self, tokens):
        info = self.backend.info
        ends = range(BLOCK, len(tokens) + 1, BLOCK)
        cells = [self.store[tuple(tokens[:end]), PieceKind.CELLS] for end in ends] if info.has_cells else []
        if not info.has_recurrent:
            return cells
        return [*cells[:-1], self.store[tuple(tokens), PieceKind.SNAPSHOT]]

    @rule(src=seqs, dst=seqs, share=st.floats(0.01, 1.0))
    def share(self, src, dst, share):
        if src == dst or not self.tokens[src]:
            return
        end = max(1, int(len(self.tokens[src]) * share))
        self.backend.clear(dst)
        shared = self.backend.share(src, dst, end)
        self.tokens[dst] = self.tokens[src][:end] if shared else []

    @rule(seq=seqs, share=st.floats(0.0, 1.0))
    def truncate(self, seq, share):
        end = int(len(self.tokens[seq]) * share)
        if self.backend.truncate(seq, end):
            del self.tokens[seq][end:]

    @rule(seq=seqs)
    def clear(self, seq):
        self.backend.clear(seq)
        self.tokens[seq] = []

    @rule(seq=seqs)
    def retain(self, seq):
        self.backend.retain(seq)

    @rule(seq=seqs)
    def goes_on_like_its_tokens_alone(self, seq):
        tokens = self.tokens[seq]
        if not tokens or not self._room(seq, 1):
            return
        status = self.backend.decode(rows_of((seq, len(tokens), [97])))
        if status is DecodeStatus.NO_SPACE:
            return
        logits = self.backend.logits(0).copy()
        tokens.append(97)
        self._store_end(seq)
        self.reference.clear(0)
        expected = feed(self.reference, 0, tokens)
        assert float(np.abs(logits - expected).max()) < NOISE

    @invariant()
    def lengths_agree(self):
        if hasattr(self, "tokens"):
            assert [self.backend.length(seq) for seq in range(SEQS)] == list(map(len, self.tokens))


@pytest.mark.parametrize("kind", OPENERS)
def test_sequences_live_as_their_tokens_alone(kind):
    backend, reference = OPENERS[kind](), OPENERS[kind]()
    try:
        run_state_machine_as_test(
            type("LivesOf", (Lives,), {"backend": backend, "reference": reference}),
            settings=settings(
                max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        backend.close()
        reference.close()
