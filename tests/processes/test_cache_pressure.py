"""A tier that is too small, a filesystem that is full, a reader that never lets go, a daemon that hangs."""

import ctypes
import resource
import signal
import threading
import time

import pytest

from erllama_host.kv.reuse import MissReason, Refusal
from tests.support.cache_host import MIB, CacheHost, wait_until
from tests.support.rows import BLOCK, Row, hit_len, look_up, payload_of, read, save
from workers.kv_types import Refused, SegmentSpec

pytestmark = pytest.mark.process


def row_of(number: int) -> Row:
    return Row([number, *range(BLOCK - 1)])


def test_files_are_never_overwritten_under_a_reader():
    """A writer turns over a tier of eight files as fast as it can while readers compare every byte they were leased."""
    with CacheHost("[host]\nlog_level = 'warning'\n") as host:
        writer, readers = host.store("writer"), [host.store(f"reader{n}") for n in range(2)]
        num_bytes = MIB - 4096
        stop = threading.Event()
        checked = []

        def read_all(store, seed):
            number = seed
            while not stop.is_set():
                number = (number * 5 + 3) % 40
                result = look_up(store, row_of(number))
                for segment in result.segments:
                    data = ctypes.string_at(segment.address, segment.num_bytes)
                    if segment.intact():
                        checked.append(data == payload_of(segment.meta, segment.num_bytes))
                store.release(result)

        threads = [threading.Thread(target=read_all, args=(store, n)) for n, store in enumerate(readers)]
        for thread in threads:
            thread.start()
        for number in range(160):
            save(writer, row_of(number % 40).blocks(), num_bytes)
            assert writer.flush(time.monotonic() + 20)
        wait_until(lambda: len(checked) > 20, "readers to have read")
        stop.set()
        for thread in threads:
            thread.join()
        assert all(checked)
        stats = host.call("stats")
        assert stats["counters"]["recycled"] > 20 and stats["counters"]["evictions"] > 20
        tier = stats["tiers"]["ram"]
        assert tier["used_bytes"] <= tier["budget_bytes"]
        assert sum(store.counters().get("raced", 0) for store in readers) == 0


def test_a_lease_that_has_ended_is_in_no_reservations_way():
    """Of a tier in which everything is leased, what is given back can be had at once: the end of a lease goes before."""
    with CacheHost() as host:
        store, num_bytes = host.store(), MIB - 4096
        for number in range(8):
            save(store, row_of(number).blocks(), num_bytes)
        assert store.flush(time.monotonic() + 20)
        leased = [look_up(store, row_of(number)) for number in range(8)]
        for number in range(8):
            spec = SegmentSpec(row_of(100 + number).blocks()[0], num_bytes)
            assert store.reserve([spec]).wait()[0].reason is Refusal.NO_BUDGET
            store.release(leased.pop(0))
            held = store.reserve([spec]).wait()[0]
            assert not isinstance(held, Refused), held
            store.publish(held, num_bytes)
            assert store.flush(time.monotonic() + 20)
            leased.append(look_up(store, row_of(100 + number)))


def test_a_lease_that_timed_out_keeps_its_bytes():
    """The TTL proves nothing about the reader: the file is unlinked, not overwritten, and counted until it is unmapped."""
    with CacheHost("lease_ttl_s = 1.0") as host:
        reader, writer = host.store("reader"), host.store("writer")
        save(writer, row_of(1).blocks(), MIB)
        assert writer.flush(1e18)
        result = look_up(reader, row_of(1))
        assert result.hit_len == BLOCK
        wait_until(lambda: host.call("stats")["leases"] == 0, "the lease to time out")
        host.call("evict", everything=True)
        assert not host.segment_files() and host.tier()["recyclable_bytes"] == 0
        wait_until(lambda: host.tier()["unlinked_bytes"] > 0, "the bytes to be counted")
        for number in range(2, 20):
            save(writer, row_of(number).blocks(), MIB)
        assert writer.flush(1e18)
        read(result)
        reader.release(result)
        wait_until(lambda: host.tier()["unlinked_bytes"] == 0, "the reader to unmap")


def test_full_filesystem_is_a_refusal():
    with CacheHost() as host:
        store = host.store()
        save(store, row_of(1).blocks(), 100_000)
        assert store.flush(1e18)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))  # the kernel says EFBIG, as a full quota would
        try:
            outcomes = save(store, row_of(2).blocks(), 2 * MIB)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [type(o) for o in outcomes] == [Refused] and outcomes[0].reason is Refusal.NO_SPACE
        wait_until(lambda: host.call("stats")["counters"].get("no_space") == 1, "the daemon to hear of it")
        tier = host.tier()
        assert tier["reserved_bytes"] == 0 and host.leftovers() == []
        # What the filesystem really has is looked at again, and the tier is whole again.
        wait_until(lambda: host.tier()["limit_bytes"] == 8 * MIB, "the limit to be looked at")
        save(store, row_of(2).blocks(), 2 * MIB)
        assert store.flush(1e18)
        assert hit_len(store, row_of(2)) == BLOCK


def test_bigger_than_the_tier_is_a_refusal():
    with CacheHost() as host:
        store = host.store()
        assert save(store, row_of(1).blocks(), 9 * MIB)[0].reason is Refusal.NO_BUDGET
        assert look_up(store, row_of(1)).miss_reason is MissReason.GATED


def test_hung_daemon_is_a_miss_within_the_deadline_and_comes_back():
    with CacheHost() as host:
        store = host.store()
        save(store, row_of(1).blocks())
        assert store.flush(1e18)
        host.signal(signal.SIGSTOP)
        started = time.monotonic()
        first = look_up(store, row_of(1), timeout_s=0.3)
        assert first.miss_reason is MissReason.DAEMON_AWAY and time.monotonic() - started < 10
        outcomes = store.reserve([], 0.1).wait()
        assert outcomes == []
        wait_until(lambda: not store.connected, "the client to notice")
        host.signal(signal.SIGCONT)
        wait_until(lambda: store.connected, "the client to notice again")
        result = look_up(store, row_of(1))
        assert result.hit_len == BLOCK
        store.release(result)
        # The lookup that was answered too late is released, too.
        wait_until(lambda: host.call("stats")["leases"] == 0, "all leases to end")


def test_no_daemon_is_a_miss_at_once():
    with CacheHost() as host:
        host.kill()
        store = host.store(wait=False)
        result = look_up(store, row_of(1))
        assert result.miss_reason is MissReason.DAEMON_AWAY
        assert save(store, row_of(1).blocks())[0].reason is Refusal.DAEMON_AWAY


def test_parent_key_is_waited_for_while_it_is_written():
    with CacheHost() as host:
        writer, reader = host.store("writer"), host.store("reader")
        row = row_of(1)
        held = writer.reserve([SegmentSpec(row.blocks()[0], 9000)]).wait()[0]
        waiting = reader.lookup(row.query(parent_key=row.key(BLOCK), wait_ms=9000))
        impatient = look_up(reader, row, parent_key=row.key(BLOCK), wait_ms=50)
        assert impatient.miss_reason is MissReason.UNKNOWN_PARENT
        assert not waiting.done()
        ctypes.memset(held.address, payload_of(held.meta, 1)[0], 9000)
        writer.publish(held, 9000)
        result = waiting.wait()
        assert result.hit_len == BLOCK
        read(result)


def test_shrink_and_evict_and_pin():
    with CacheHost() as host:
        store = host.store()
        for number in range(4):
            save(store, row_of(number).blocks(), MIB)
        assert store.flush(1e18)
        assert host.call("pin", key=row_of(0).key(BLOCK).hex()) == {"segments": 1, "pinned": True}
        before = host.tier()["used_bytes"]
        freed = host.call("shrink", target_bytes=before // 2)
        assert freed["freed_bytes"] >= before // 2
        wait_until(lambda: host.tier()["used_bytes"] <= before // 2, "the memory to be given back")
        assert hit_len(store, row_of(0)) == BLOCK
        assert "no segment" in host.call("pin", key="00" * 32)["error"]
        assert "exactly one" in host.call("evict")["error"]
