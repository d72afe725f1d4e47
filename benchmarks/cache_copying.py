"""Saving and restoring real KV state through the cache, block by block, against a plain memcpy of the same bytes."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.arithmetic import median
from benchmarks.cache_host import cache_bench, room_for
from benchmarks.cache_rows import BLOCK_TOKENS, ROW_TOKENS, SyntheticRow
from benchmarks.figures import Figure, Target
from benchmarks.setting import THREADS, Setting
from erllama_host.config.model import ModelConfig
from erllama_host.protocol import unpack_tokens
from workers.backend.base import Backend, DecodeStatus, PieceKind, Rows
from workers.backend.open import open_backend
from workers.kv_store import KvStore
from workers.kv_types import LeasedSegment, SegmentSpec

PART = "cache"
BLOCKS = ROW_TOKENS // BLOCK_TOKENS
RESTORE_TARGET = Target(at_least=0.8)
SOURCE, TARGET = 0, 1
WARM_UP_ROUNDS = 6
"""Until the tier is full and every further row goes into recycled files."""


@dataclass
class _Seconds:
    """Per round: the whole row's time for each way of moving its bytes."""

    pack: list[float] = field(default_factory=list)
    copy_in: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    copy_out: list[float] = field(default_factory=list)
    copy_out_by_tensor: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Cells:
    """Memory laid out like a model's cells: a tensor of keys and one of values for each layer, each with room for two rows."""

    address: int
    num_tensors: int
    piece_bytes: int

    def moves(self, i: int, segment: LeasedSegment) -> list[tuple[int, int]]:
        """Where the pieces of the row's segment `i` go, one per tensor, and where they lie: what llama.cpp copies, and how."""
        to = self.address + (BLOCKS + i) * self.piece_bytes
        step = 2 * BLOCKS * self.piece_bytes
        return [(to + t * step, segment.address + t * self.piece_bytes) for t in range(self.num_tensors)]


def copying(setting: Setting) -> list[Figure]:
    """Bandwidths of saving and restoring a row of 2 048 tokens."""
    config = ModelConfig(
        path=str(setting.model), n_ctx=2 * ROW_TOKENS, n_cells=2 * ROW_TOKENS, n_seq_max=4,
        n_threads=THREADS, n_threads_batch=THREADS,
    )  # fmt: skip
    backend = open_backend(config, lambda _fraction, _phase: None)
    try:
        _fill(backend)
        block_bytes = backend.piece_size(SOURCE, 0, BLOCK_TOKENS, PieceKind.CELLS)
        with cache_bench(ram_budget_bytes=block_bytes * BLOCKS * 4) as bench:
            bench.start()
            seconds = _rounds(backend, bench.store(), block_bytes, setting.repeats(30, 6))
    finally:
        backend.close()
    return _figures(seconds, block_bytes * BLOCKS)


def _fill(backend: Backend) -> None:
    tokens = np.array(unpack_tokens(SyntheticRow(0).packed), np.int32)
    step = backend.limits.max_rows
    for start in range(0, ROW_TOKENS, step):
        part = tokens[start : start + step]
        positions = np.arange(start, start + len(part), dtype=np.int32)
        outputs = np.zeros(len(part), bool)
        outputs[-1] = True
        status = backend.decode(Rows(part, positions, np.zeros(len(part), np.int32), outputs))
        if status is not DecodeStatus.OK:
            raise RuntimeError(f"the prompt could not be computed: {status}")


def _rounds(backend: Backend, store: KvStore, block_bytes: int, repeats: int) -> _Seconds:
    seconds = _Seconds()
    buffer = (ctypes.c_uint8 * (block_bytes * BLOCKS))()  # as large as the cells, so that no cache helps one of them
    ctypes.memset(buffer, 1, block_bytes * BLOCKS)
    base = ctypes.addressof(buffer)
    num_tensors = 2 * backend.info.n_layer
    room = (ctypes.c_uint8 * (block_bytes * BLOCKS * 2))()
    ctypes.memset(room, 1, len(room))
    cells = _Cells(ctypes.addressof(room), num_tensors, block_bytes // num_tensors)
    for number in range(WARM_UP_ROUNDS + repeats):
        row = SyntheticRow(number)
        _save(backend, store, row, block_bytes, base, seconds)
        _read(backend, store, row, base, cells, seconds, turn=number)
    for samples in vars(seconds).values():
        del samples[:WARM_UP_ROUNDS]
    return seconds


def _save(
    backend: Backend, store: KvStore, row: SyntheticRow, block_bytes: int, base: int,
    seconds: _Seconds,
) -> None:  # fmt: skip
    """Copy first, then pack: both meet pages that are there."""
    regions = room_for(store, [SegmentSpec(meta, block_bytes) for meta in row.blocks()])
    addresses = [region.address for region in regions]
    seconds.copy_in.append(_timed(lambda i: ctypes.memmove(addresses[i], base + i * block_bytes, block_bytes)))
    seconds.pack.append(
        _timed(
            lambda i: backend.pack(
                SOURCE, i * BLOCK_TOKENS, (i + 1) * BLOCK_TOKENS, PieceKind.CELLS, addresses[i], block_bytes
            )
        )
    )
    for region in regions:
        store.publish(region, block_bytes)
    store.flush(time.monotonic() + 60)


def _read(
    backend: Backend, store: KvStore, row: SyntheticRow, base: int, cells: _Cells,
    seconds: _Seconds, turn: int,
) -> None:  # fmt: skip
    """Copy a stored row out in each of the three ways, beginning with another one each turn: who is first finds cold caches."""
    result = store.lookup(row.query()).wait()
    if result.hit_len != ROW_TOKENS:
        raise RuntimeError(f"found {result.hit_len} tokens: {result.miss_reason}")
    found = result.segments
    moves = [cells.moves(i, segment) for i, segment in enumerate(found)]

    def copy(i: int) -> None:
        ctypes.memmove(base + i * found[i].num_bytes, found[i].address, found[i].num_bytes)

    def copy_by_tensor(i: int) -> None:
        for to, lies in moves[i]:
            ctypes.memmove(to, lies, cells.piece_bytes)

    def restore(i: int) -> None:
        meta, segment = found[i].meta, found[i]
        done = backend.restore(
            TARGET, meta.start, meta.end, PieceKind.CELLS, segment.address, segment.num_bytes, meta.end
        )
        if not done:
            raise RuntimeError(f"block {i} could not be restored")

    ways = [(copy, seconds.copy_out), (copy_by_tensor, seconds.copy_out_by_tensor), (restore, seconds.restore)]
    first = turn % len(ways)
    for step, samples in ways[first:] + ways[:first]:
        samples.append(_timed(step))
    store.release(result)
    backend.clear(TARGET)


def _timed(step: Callable[[int], object]) -> float:
    started = time.perf_counter()
    for i in range(BLOCKS):
        step(i)
    return time.perf_counter() - started


def _figures(seconds: _Seconds, row_bytes: int) -> list[Figure]:
    def rate(samples: list[float]) -> float:
        return row_bytes / median(samples) / 1e9

    restored = f"restore of {ROW_TOKENS} tokens from shared memory, {row_bytes / 1e6:.0f} MB"
    return [
        Figure(PART, restored, rate(seconds.restore), "GB/s", against="memcpy", reference=rate(seconds.copy_out),
               target=RESTORE_TARGET, note=f"{median(seconds.restore) * 1e3:.1f} ms",
               samples={"restore_s": seconds.restore}),
        Figure(PART, f"{restored}, in llama.cpp's pieces", rate(seconds.restore), "GB/s",
               against="memcpy of such pieces", reference=rate(seconds.copy_out_by_tensor), target=RESTORE_TARGET),
        Figure(PART, f"packing of {ROW_TOKENS} tokens into recycled shared memory", rate(seconds.pack), "GB/s",
               against="memcpy", reference=rate(seconds.copy_in), note=f"{median(seconds.pack) * 1e3:.1f} ms",
               samples={"pack_s": seconds.pack}),
    ]  # fmt: skip
