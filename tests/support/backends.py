"""Backends for tests, and short ways to use them."""

import ctypes

import numpy as np

from erllama_host.config.model import ModelConfig, StubConfig
from erllama_host.protocol.inference import SamplingParams
from workers.backend.base import Backend, DecodeStatus, PieceKind, Rows
from workers.backend.open import open_backend

GREEDY = SamplingParams()


def open_stub_backend(*, config=None, **stub) -> Backend:
    """A stub backend; keywords are those of StubConfig, `config` those of ModelConfig."""
    options = {"backend": "stub", "n_ctx": 512, "n_cells": 1024, **(config or {})}
    return open_backend(ModelConfig(**options, stub=StubConfig(**stub)), lambda fraction, phase: None)


def open_gguf_backend(path, **config) -> Backend:
    """A llama.cpp backend of the file, with small dimensions unless told otherwise."""
    options = {"n_ctx": 512, "n_cells": 1024, "n_threads": 1, "n_threads_batch": 1, **config}
    return open_backend(ModelConfig(path=str(path), **options), lambda fraction, phase: None)


def rows_of(*runs, outputs="last") -> Rows:
    """Rows for one decode from `(seq, start, tokens)` runs; `outputs` is `last` (of each run), `all` or `none`."""
    tokens, positions, seqs, wanted = [], [], [], []
    for seq, start, ids in runs:
        tokens += list(ids)
        positions += range(start, start + len(ids))
        seqs += [seq] * len(ids)
        flags = [outputs == "all"] * len(ids)
        if outputs == "last":
            flags[-1] = True
        wanted += flags
    return Rows(np.array(tokens, np.int32), np.array(positions, np.int32), np.array(seqs, np.int32), np.array(wanted))


def feed(backend, seq, tokens, chunk=None):
    """Decode `tokens` onto the end of `seq`; returns a copy of the logits after the last."""
    tokens = list(tokens)
    chunk = chunk or backend.limits.max_rows
    for index in range(0, len(tokens), chunk):
        part = tokens[index : index + chunk]
        status = backend.decode(rows_of((seq, backend.length(seq), part)))
        assert status is DecodeStatus.OK, status
    return backend.logits(len(part) - 1).copy()


def greedy(backend, seq, tokens, num_tokens):
    """Feed `tokens`, then answer greedily with `num_tokens` tokens; the last of them is not fed."""
    logits = feed(backend, seq, tokens)
    answer = [int(logits.argmax())]
    while len(answer) < num_tokens:
        answer.append(int(feed(backend, seq, answer[-1:]).argmax()))
    return answer


def some_tokens(backend, count, salt=0):
    """`count` ordinary token ids of the model, the same for the same salt."""
    random = np.random.default_rng(salt)
    low, high = (97, 123) if backend.info.n_vocab >= 256 else (3, backend.info.n_vocab)
    return random.integers(low, high, count).tolist()


class Blob:
    """A packed piece, in memory that stays where it is."""

    def __init__(self, backend, seq, start, end, kind=PieceKind.CELLS):
        self.start, self.end, self.kind = start, end, kind
        self.size = backend.piece_size(seq, start, end, kind)
        self.buffer = (ctypes.c_uint8 * max(self.size, 1))()
        self.packed = backend.pack(seq, start, end, kind, self.address, self.size) if self.size else 0

    @property
    def address(self):
        return ctypes.addressof(self.buffer)

    def restore(self, backend, seq, use_end=None):
        end = self.end if use_end is None else use_end
        return backend.restore(seq, self.start, self.end, self.kind, self.address, self.size, end)
