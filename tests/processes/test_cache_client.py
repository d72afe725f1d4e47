"""The worker's client against a real daemon: what each call answers, and what it leaves behind."""

import os
import threading

import pytest
import zmq

from erllama_host.kv.reuse import MissReason, Refusal
from erllama_host.kv.segment import SaveReason, SegmentKind
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, encode_envelope
from tests.support.cache_host import CacheHost, wait_until
from tests.support.rows import BLOCK, OTHER_SPACE, Row, hit_len, look_up, read, save
from workers.kv_store import cache_endpoint
from workers.kv_types import AlreadyThere, SegmentSpec

pytestmark = pytest.mark.process
ROW = Row(range(2 * BLOCK + 5))


@pytest.fixture(scope="module")
def host():
    with CacheHost() as running:
        yield running


@pytest.fixture(autouse=True)
def empty(host):
    def evicted():  # again and again: a save of the test before may be published only now
        host.call("evict", everything=True, pinned=True)
        return host.tier()["used_bytes"] == 0

    wait_until(evicted, "the tier to be empty")


def test_one_worker_saves_and_another_reads(host):
    writer, reader = host.store("writer"), host.store("reader")
    save(writer, [*ROW.all(), ROW.logits()])
    assert writer.flush(1e18) and writer.pending_count() == 0
    assert writer.counters()["saves"] == 4
    result = look_up(reader, ROW)
    assert (result.hit_len, result.miss_reason, result.diverged_at) == (ROW.num_tokens, None, None)
    assert [s.meta for s in result.segments] == ROW.all()
    assert len(read(result)) == 4 and result.lookup_ms > 0
    reader.release(result)
    other = Row([*range(BLOCK + 3), 77, 78])
    cut = look_up(reader, other)
    assert (cut.hit_len, cut.diverged_at) == (BLOCK + 3, BLOCK + 3)
    assert [(s.meta.end, s.use_end) for s in cut.segments] == [(BLOCK, BLOCK), (2 * BLOCK, BLOCK + 3)]
    reader.release(cut)


def test_nothing_is_written_twice(host):
    first, second = host.store("first"), host.store("second")
    save(first, ROW.blocks())
    assert first.flush(1e18)
    assert save(second, ROW.blocks()) == [AlreadyThere(meta.key, meta.kind) for meta in ROW.blocks()]
    held = first.reserve([SegmentSpec(ROW.tail(), 100)]).wait()[0]
    refused = second.reserve([SegmentSpec(ROW.tail(), 100)]).wait()[0]
    assert refused.reason is Refusal.BEING_WRITTEN
    first.abort(held)


def test_an_aborted_region_is_used_again(host):
    store = host.store()
    held = store.reserve([SegmentSpec(ROW.blocks()[0], 50_000)]).wait()[0]
    store.abort(held)
    wait_until(lambda: host.tier()["recyclable_bytes"] > 0, "the file to be kept for reuse")
    assert host.tier()["reserved_bytes"] == 0
    recycled = host.call("stats")["counters"].get("recycled", 0)
    save(store, ROW.blocks(), 50_000)
    assert store.flush(1e18)
    assert host.call("stats")["counters"]["recycled"] == recycled + 1
    result = look_up(store, ROW)
    assert result.hit_len == 2 * BLOCK
    read(result)
    store.release(result)


def test_other_models_never_meet(host):
    mine, theirs = host.store("mine"), host.store("theirs", namespace=OTHER_SPACE.root)
    save(mine, ROW.all())
    assert mine.flush(1e18)
    result = look_up(theirs, Row(range(2 * BLOCK + 5), OTHER_SPACE))
    assert (result.hit_len, result.miss_reason) == (0, MissReason.OTHER_NAMESPACE)
    assert host.call("evict", model="theirs")["dropped_segments"] == 0
    assert host.call("evict", model="mine")["dropped_segments"] == 3
    assert look_up(mine, ROW).miss_reason is MissReason.EVICTED


def test_listing_and_pinning(host):
    store = host.store("listed")
    save(store, ROW.blocks(SaveReason.PREFIX))
    save(store, [ROW.tail()])
    assert store.flush(1e18)
    listed = host.call("ls", model="listed")
    assert listed["total"] == 3
    assert {(row["kind"], row["pinned"], row["reason"]) for row in listed["segments"]} == {
        ("block", True, "prefix"),
        ("tail", False, "finish"),
    }
    assert len(host.call("ls", limit=1)["segments"]) == 1
    assert host.call("evict", key=ROW.key(BLOCK).hex())["kept_segments"] == 2
    for end in (BLOCK, 2 * BLOCK):
        host.call("unpin", key=ROW.key(end).hex()[:12])  # as `erllama cache ls` shows it
    assert host.call("evict", key=ROW.key(BLOCK).hex()[:8].upper())["dropped_segments"] == 2
    assert "no segment has that key" in host.call("pin", key=ROW.key(BLOCK).hex()[:12])["error"]
    for text in ("abc", "not hexadecimal", "0" * 65):
        assert "8 to 64 hex digits" in host.call("pin", key=text)["error"]
    assert "no model" in host.call("ls", model="nobody")["error"]


def test_superseded_tails_are_collected(host):
    store = host.store()
    save(store, Row(range(5)).all())
    save(store, Row(range(BLOCK)).blocks())
    assert store.flush(1e18)
    assert host.call("gc")["dropped_segments"] == 1
    assert hit_len(store, Row(range(5))) == 5


def test_snapshots_go_the_same_way(host):
    store = host.store()
    row = Row(range(BLOCK + 5), cuttable=False)
    save(store, [row.snapshot(), row.logits()])
    assert store.flush(1e18)
    result = look_up(store, row, reuse="state")
    assert [s.meta.kind for s in result.segments] == [SegmentKind.SNAPSHOT] and result.logits is not None
    read(result)
    store.release(result)
    assert hit_len(store, Row(range(BLOCK + 4)), reuse="state") == 0


def test_junk_on_the_socket_is_answered_or_dropped(host):
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(cache_endpoint(host.paths.run))
        good_head = encode_envelope(Envelope(PROTOCOL_VERSION, "k.lookup", "1", "x"))
        for frames in ([b""], [b"junk", b"junk"], [good_head], [good_head, os.urandom(50)], [good_head, b"", b""]):
            socket.send_multipart(frames)
        for kind in ("k.reserve", "nonsense", "cache", "k.hello"):
            socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, kind, "2")), b"\x81\xa1x\x01"])
        assert socket.poll(20_000)
    assert host.call("stats")["segments"] == 0


def test_a_crash_of_the_io_thread_is_raised_in_the_engine(host):
    woken = threading.Event()
    store = host.store("broken", on_wake=woken.set)
    store._post(lambda io: io.no_such_thing)  # a bug, in the I/O thread
    assert woken.wait(30)
    with pytest.raises(RuntimeError, match="I/O thread"):
        store.lookup(ROW.query())
    assert not store.connected
    store._failure = None  # so that it can be closed


def test_a_worker_with_another_block_length_is_told_why_it_goes_without_a_cache():
    with CacheHost() as host:
        store = host.store(block_tokens=256, wait=False)
        wait_until(lambda: store.refused, "the refusal")
        assert "blocks of 16 tokens, this worker of 256" in store.refused and "restart the host" in store.refused
        assert not store.connected and host.call("stats")["workers"] == []
        assert "worker_refused" in host.log_path.read_text()
        assert store.lookup(ROW.query()).wait().miss_reason is MissReason.DAEMON_AWAY
        host.kill()
        host.paths.config_file.write_text("[cache]\nblock_tokens = 256\nram_budget_bytes = 8000000\n")
        host.start()
        wait_until(lambda: store.connected and not store.refused, "the registration with a daemon of the same length")
