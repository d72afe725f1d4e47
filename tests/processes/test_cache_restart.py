"""What survives: the daemon's death, a stop and start, an emptied shared memory; and what is done with files that are not good."""

import os
import shutil
import signal
import struct
import time

import pytest

from erllama_host.kv.segment import FORMAT_VERSION
from tests.support.cache_host import CacheHost, wait_until
from tests.support.rows import BLOCK, Row, hit_len, look_up, read, save

pytestmark = pytest.mark.process
ROW = Row(range(3 * BLOCK + 5))


def save_row(host, store, row=ROW, tier="ram"):
    save(store, [*row.all(), row.logits()])
    assert store.flush(1e18)
    wait_until(lambda: host.tier(tier).get("segments") == len(row.all()) + 1, f"the row to reach {tier}")


def check_whole(store, row=ROW, tier="ram"):
    result = look_up(store, row)
    assert result.hit_len == row.num_tokens and result.logits is not None and result.miss_reason is None
    assert {segment.tier for segment in result.segments} == {tier}
    read(result)
    store.release(result)


def test_row_survives_the_daemon_and_is_verified_once():
    with CacheHost() as host:
        store = host.store()
        save_row(host, store)
        before = host.tier()
        for _ in range(2):
            host.kill()
            host.start()
            wait_until(lambda: store.connected and hit_len(store, ROW), "the client to find the new daemon")
            check_whole(store)
        after = host.tier()
        assert after["published_bytes"] == before["published_bytes"] and after["unlinked_bytes"] == 0
        assert store.counters()["verified"] >= 5
        verified = store.counters()["verified"]
        wait_until(lambda: host.call("stats")["leases"] == 0, "the leases to end")
        check_whole(store)
        assert store.counters()["verified"] == verified


def test_disk_tier_survives_an_emptied_shared_memory():
    with CacheHost() as host:
        store = host.store(tier="disk")
        save_row(host, store, tier="disk")
        check_whole(store, tier="ram")  # the faster copy
        ram = host.tier_path("ram")
        store.close(time.monotonic() + 5)
        host.signal(signal.SIGTERM)
        assert host.process.wait(timeout=30) == 0
        shutil.rmtree(ram)  # as after a reboot
        host.start()
        fresh = host.store(tier="disk")
        check_whole(fresh, tier="disk")


def test_what_had_not_reached_the_disk_is_carried_by_the_next_daemon():
    with CacheHost() as host:
        store = host.store(tier="ram")
        save_row(host, store)
        store.close(time.monotonic() + 5)
        host.kill()
        host.start()
        host.store(tier="disk")  # the same model, now with a tier that is more durable
        wait_until(lambda: host.tier("disk").get("segments") == len(ROW.all()) + 1, "the row to reach the disk")


def test_ram_file_tier_is_written_directly(tmp_path):
    config = f'[cache.tiers.keep]\nkind = "ram_file"\npath = "{tmp_path / "keep"}"\nbudget_bytes = 4000000'
    with CacheHost(config) as host:
        store = host.store(tier="keep")
        save_row(host, store, tier="keep")
        assert host.tier("ram")["used_bytes"] == 0
        shutil.rmtree(host.tier_path("ram"))
        host.kill()
        host.start()
        wait_until(lambda: hit_len(store, ROW), "the client to find the new daemon")
        check_whole(store, tier="keep")


def test_files_that_are_not_good():
    with CacheHost() as host:
        store = host.store()
        rows = [Row([n, *range(BLOCK - 1)]) for n in range(100, 106)]
        for row in rows:
            save(store, row.blocks())
        assert store.flush(1e18)
        ram = host.tier_path()
        host.kill()
        by_row = {row.key(BLOCK).hex(): row for row in rows}
        files = {path.name.partition(".")[0]: path for path in sorted(ram.glob("??/*.*"))}
        assert files.keys() == by_row.keys()
        cut, junk, older, newer, payload, good = (files[row.key(BLOCK).hex()] for row in rows)
        with cut.open("r+b") as file:
            file.truncate(5000)
        junk.write_bytes(b"nonsense" * 600)
        patch(older, 16, struct.pack("<H", FORMAT_VERSION - 1))
        patch(newer, 16, struct.pack("<H", FORMAT_VERSION + 1))
        patch(payload, 6000, b"damaged")
        foreign = good.parent / "notes.txt"
        foreign.write_text("mine")
        (good.parent / f"{'0' * 64}.block").mkdir()
        os.mkfifo(good.parent / f"{'0' * 64}.tail")
        host.start()
        report = host.call("stats")["recovery"]
        assert report["adopted"] == 2
        assert report["not_adopted"] == {"junk": 2, "older_version": 1, "newer_version": 1, "foreign": 3}
        assert [path.exists() for path in (cut, junk, older, newer, foreign)] == [False, False, False, True, True]
        wait_until(lambda: hit_len(store, rows[5]) == BLOCK, "the good one to be found")
        damaged = look_up(store, rows[4])
        assert (damaged.hit_len, damaged.miss_reason) == (0, "corrupt")
        store.release(damaged)
        wait_until(lambda: not payload.exists(), "the damaged file to be removed")
        assert look_up(store, rows[4]).miss_reason == "corrupt"
        save(store, rows[3].blocks())  # a newer file of that name gives way to a save
        assert store.flush(1e18)
        assert hit_len(store, rows[3]) == BLOCK


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: os.truncate(path, 5000)])
def test_a_file_that_was_harmed_by_hand_is_missed_once_and_then_saved_again(harm):
    with CacheHost() as host:
        save_row(host, host.store())
        reader = host.store()  # has nothing mapped
        row = Row(range(BLOCK))
        harm(next(path for path in host.segment_files() if path.stem == row.key(BLOCK).hex()))
        missed = look_up(reader, ROW)
        assert (missed.hit_len, missed.miss_reason) == (0, "raced")
        reader.release(missed)
        wait_until(lambda: look_up(reader, ROW).miss_reason == "corrupt", "the daemon to have looked")
        save(reader, row.blocks())
        assert reader.flush(1e18)
        check_whole(reader)
        assert "segment_damaged" in host.log_path.read_text()


def test_a_copy_on_disk_is_compared_when_it_is_read_first():
    with CacheHost() as host:
        store = host.store(tier="disk")
        save_row(host, store, tier="disk")
        block = next(path for path in host.segment_files("disk") if path.stem == ROW.key(BLOCK).hex())
        patch(block, 6000, b"damaged")
        assert host.call("shrink", target_bytes=0)["freed_bytes"] > 0
        damaged = look_up(store, ROW)
        assert (damaged.hit_len, damaged.miss_reason) == (0, "corrupt")
        store.release(damaged)
        wait_until(lambda: not block.exists(), "the damaged file to be removed")


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_verify_finds_damage_and_removes_it():
    with CacheHost() as host:
        store = host.store()
        save_row(host, store)
        assert host.call("verify") == {"checked_files": 5, "corrupt_files": 0}
        tail = next(path for path in host.segment_files() if path.suffix == ".tail")
        patch(tail, 6000, b"damaged")
        assert host.call("verify", model="tiny") == {"checked_files": 5, "corrupt_files": 1}
        assert not tail.exists()
        assert hit_len(store, ROW) == 3 * BLOCK
        assert host.call("stats")["counters"]["corrupt"] == 1


def test_sigterm_waits_for_the_last_worker():
    with CacheHost() as host:
        store = host.store()
        host.signal(signal.SIGTERM)
        save_row(host, store)  # a shutdown save that comes after the signal
        assert host.process.poll() is None
        store.close(time.monotonic() + 5)
        assert host.process.wait(timeout=30) == 0


def test_a_new_daemon_waits_for_the_old_one():
    with CacheHost() as host:
        old = host.process
        host.start(wait=False)
        wait_until(lambda: "waiting_for_the_daemon_before_us" in host.log_path.read_text(), "the new one to wait")
        assert host.process.poll() is None
        old.terminate()
        assert old.wait(timeout=30) == 0
        wait_until(host.recovered, "the new one to serve")
