"""The cache daemon and its client: lookups among many segments, start-up from files, bytes stored, noticing a death.

Restores and saves of real KV state are in cache_copying.py; nothing here needs a model.
"""

import ctypes
import time
from collections.abc import Sequence

from benchmarks.arithmetic import median, percentile
from benchmarks.cache_copying import copying
from benchmarks.cache_host import CacheBench, cache_bench, room_for
from benchmarks.cache_rows import BLOCK_TOKENS, ROW_TOKENS, SyntheticRow, write_segments
from benchmarks.figures import Figure, Target
from benchmarks.setting import Setting
from workers.kv_store import KvStore
from workers.kv_types import AlreadyThere, Refused, Reservation, SegmentSpec

PART = "cache"
SIZES = (100, 10_000, 100_000)
QUICK_SIZES = (100, 2_000)
ROWS_ASKED_FOR = 12
FLAT = Target(at_most=1.5)
START_TARGET = Target(at_most=1.0)
START_LIMIT_S = 10.0
SHARING_TARGET = Target(at_most=0.5)
KV_BYTES_PER_TOKEN = 23_052
"""Of SmolLM2-135M at f16."""


def run(setting: Setting) -> list[Figure]:
    """Restores and packing move real KV state in segments of 256 tokens, memcpy moves as many bytes. All else is about made-up
    segments of that model's sizes, in a cache daemon of their own.
    """
    return [*copying(setting), *_lookups(setting), *_saving(setting), *_sharing(), *_deaths(setting)]


# ---- lookups and start-up ------------------------------------------------------------------------------------------


def _lookups(setting: Setting) -> list[Figure]:
    sizes = QUICK_SIZES if setting.quick else SIZES
    samples: dict[int, list[float]] = {}
    start_s = 0.0
    for size in sizes:
        setting.say(f"{size} segments")
        with cache_bench() as bench:
            write_segments(bench.tier_path(), size)
            start_s = bench.start()
            samples[size] = lookup_times_ms(bench.store(), min(ROWS_ASKED_FOR, size // 8), setting.repeats(1500, 300))
    smallest = median(samples[sizes[0]])
    figures = [
        Figure(PART, f"lookup of {ROW_TOKENS} tokens among {size} segments, p50", median(values), "ms",
               against=f"among {sizes[0]}" if size != sizes[0] else "", target=FLAT if size != sizes[0] else None,
               reference=smallest if size != sizes[0] else None, note=f"p99 {percentile(values, 99):.2f} ms",
               samples={"lookup_ms": values})
        for size, values in samples.items()
    ]  # fmt: skip
    figures.append(
        Figure(PART, f"start on {sizes[-1]} segment files until all are indexed", start_s, "s",
               against="the limit", reference=START_LIMIT_S, target=START_TARGET)
    )  # fmt: skip
    return figures


def lookup_times_ms(store: KvStore, num_rows: int, repeats: int) -> list[float]:
    """Whole lookups as the engine sees them: eight segments found, leased and mapped. Verified and mapped before."""
    queries = [SyntheticRow(number).query() for number in range(num_rows)]
    times = []
    for number in range(repeats + 2 * num_rows):
        started = time.perf_counter()
        result = store.lookup(queries[number % num_rows]).wait()
        times.append((time.perf_counter() - started) * 1e3)
        if result.hit_len != ROW_TOKENS:
            raise RuntimeError(f"found {result.hit_len} tokens of {ROW_TOKENS}: {result.miss_reason}")
        store.release(result)
    return times[2 * num_rows :]


# ---- saving --------------------------------------------------------------------------------------------------------


def _saving(setting: Setting) -> list[Figure]:
    """From the request for room to visible, per row of eight blocks of SmolLM2's size: new files, then recycled ones."""
    block_bytes = KV_BYTES_PER_TOKEN * BLOCK_TOKENS
    with cache_bench(ram_budget_bytes=block_bytes * 40) as bench:
        bench.start()
        store = bench.store()
        fresh = [_reserve_ms(store, number, block_bytes) for number in range(4)]
        for number in range(4, 12):
            _reserve_ms(store, number, block_bytes)
        recycled = [_reserve_ms(store, number, block_bytes) for number in range(12, setting.repeats(32, 18))]
    return [
        Figure(PART, "room for 2 048 tokens in recycled files, 47 MB", median(recycled), "ms",
               against="in new files", reference=median(fresh), target=Target(at_most=0.2),
               samples={"recycled_ms": recycled, "fresh_ms": fresh})
    ]  # fmt: skip


def _reserve_ms(store: KvStore, number: int, block_bytes: int) -> float:
    """How long a row's regions take to be there, mapped and touched. The row is then published."""
    specs = [SegmentSpec(meta, block_bytes) for meta in SyntheticRow(number).blocks()]
    started = time.perf_counter()
    regions = room_for(store, specs)
    took_ms = (time.perf_counter() - started) * 1e3
    _publish_ones(store, regions)
    return took_ms


def _publish_ones(store: KvStore, regions: Sequence[Reservation]) -> None:
    """Fill them, as packing would, and wait until they are visible."""
    for region in regions:
        ctypes.memset(region.address, 1, region.capacity_bytes)
        store.publish(region, region.capacity_bytes)
    store.flush(time.monotonic() + 60)


# ---- deaths --------------------------------------------------------------------------------------------------------


def _deaths(setting: Setting) -> list[Figure]:
    """From the SIGKILL of a worker until its reservation can be given to another."""
    with cache_bench() as bench:
        bench.start()
        store = bench.store()
        samples = [_freed_after_ms(bench, store, number) for number in range(setting.repeats(20, 3))]
    return [
        Figure(PART, "death of a writer until its segment can be reserved by another, p50", median(samples), "ms",
               note=f"max {max(samples):.1f} ms", samples={"freed_ms": samples})
    ]  # fmt: skip


def _freed_after_ms(bench: CacheBench, store: KvStore, number: int) -> float:
    spec = SegmentSpec(next(SyntheticRow(number).blocks()), 1 << 16)
    child = bench.writer(number)
    if not isinstance(store.reserve([spec]).wait()[0], Refused):
        raise RuntimeError("the other process does not hold the segment")
    killed = time.perf_counter()
    child.kill()
    while isinstance(outcome := store.reserve([spec]).wait()[0], Refused):
        pass
    freed = time.perf_counter()
    assert not isinstance(outcome, AlreadyThere)  # nobody has published it
    store.abort(outcome)
    child.wait()
    return (freed - killed) * 1e3


# ---- bytes ---------------------------------------------------------------------------------------------------------


def _sharing() -> list[Figure]:
    """Four conversations on one prefix of 1 024 tokens, three turns of 256 tokens each."""
    per_block = KV_BYTES_PER_TOKEN * BLOCK_TOKENS
    prefix, turn, turns, conversations = 1024, 256, 3, 4
    whole_rows = sum(prefix + turn * (n + 1) for n in range(turns)) * conversations * KV_BYTES_PER_TOKEN
    with cache_bench() as bench:
        bench.start()
        stored = _store_conversations(bench, per_block, conversations, (prefix + turn * turns) // BLOCK_TOKENS)
    return [
        Figure(PART, "bytes stored for 4 conversations on a 1 024-token prefix, 3 turns", stored / 1e6, "MB",
               against="whole rows", reference=whole_rows / 1e6, target=SHARING_TARGET)
    ]  # fmt: skip


def _store_conversations(bench: CacheBench, per_block: int, conversations: int, blocks: int) -> int:
    store = bench.store()
    shared = SyntheticRow(0).packed[: 1024 * 4]
    for number in range(1, conversations + 1):
        row = SyntheticRow(number, shared)
        specs = [SegmentSpec(meta, per_block) for meta in row.blocks()][:blocks]
        outcomes = store.reserve(specs).wait()
        _publish_ones(store, [outcome for outcome in outcomes if not isinstance(outcome, AlreadyThere | Refused)])
    return int(bench.stats()["tiers"]["ram"]["published_bytes"])
