"""A real writer killed at every stage of publishing: nothing half-written is read, nothing published is lost, no byte leaks."""

import ctypes
import subprocess
import sys

import pytest

from tests.support.cache_host import ROOT, CacheHost, wait_until
from tests.support.rows import BLOCK, Row, hit_len, look_up, read, save
from tests.support.stage_writer import PAYLOAD_BYTES, STAGES
from workers.kv_store import cache_endpoint
from workers.kv_types import SegmentSpec

pytestmark = pytest.mark.process
VISIBLE_AFTER_DEATH = ("linked", "unlinked", "announced")


def run_writer_until(host: CacheHost, stage: str, first_token: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.support.stage_writer",
        cache_endpoint(host.paths.run),
        stage,
        str(first_token),
    ]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == stage
    child.stdout.close()
    return child


def row_of(first_token: int) -> Row:
    return Row([first_token, *range(BLOCK - 1)])


def check_after_death(host: CacheHost, stage: str, first_token: int) -> None:
    """Whole or not at all; the books balance; the same segment can be written at once by somebody else."""
    store = host.store("survivor")
    row = row_of(first_token)
    result = look_up(store, row)
    assert result.hit_len == (BLOCK if stage in VISIBLE_AFTER_DEATH else 0), stage
    read(result)
    store.release(result)
    if stage not in VISIBLE_AFTER_DEATH:
        outcomes = save(store, row.blocks(), PAYLOAD_BYTES)
        assert hasattr(outcomes[0], "address"), outcomes
        assert store.flush(deadline_s=1e18)
        again = look_up(store, row)
        assert again.hit_len == BLOCK
        read(again)
        store.release(again)
    tier = host.tier()
    assert tier["reserved_bytes"] == tier["unlinked_bytes"] == 0
    assert tier["published_bytes"] == sum(path.stat().st_size for path in host.segment_files())
    assert host.leftovers() == []


def test_writer_killed_at_every_stage():
    with CacheHost() as host:
        for number, stage in enumerate(STAGES):
            child = run_writer_until(host, stage, first_token=100 + number)
            child.kill()
            child.wait()
            wait_until(lambda: not any(w["model"] == "child" for w in host.call("stats")["workers"]), "the death")
            check_after_death(host, stage, 100 + number)
        assert len(host.segment_files()) == len(STAGES)


def test_writer_and_daemon_killed_at_every_stage():
    with CacheHost() as host:
        children = {
            stage: run_writer_until(host, stage, first_token=100 + number) for number, stage in enumerate(STAGES)
        }
        host.kill()
        for child in children.values():
            child.kill()
            child.wait()
        host.start()
        for number, stage in enumerate(STAGES):
            check_after_death(host, stage, 100 + number)


def test_daemon_killed_under_a_writer():
    """The writer lives on: it registers again, finds its reservation lost, and simply saves once more."""
    with CacheHost() as host:
        store = host.store()
        row = row_of(1)
        save(store, row.blocks())
        assert store.flush(1e18)
        host.kill()
        host.start()
        wait_until(lambda: hit_len(store, row) == BLOCK, "the row to be found by the new daemon")
        outcomes = save(store, row_of(2).blocks())
        assert store.flush(1e18) and hasattr(outcomes[0], "address")
        assert hit_len(store, row_of(2)) == BLOCK


def test_reservation_of_a_killed_daemon_is_lost_without_harm():
    with CacheHost() as host:
        store = host.store()
        meta = row_of(3).blocks()[0]
        held = store.reserve([SegmentSpec(meta, 9000)], 10).wait()[0]
        host.kill()
        host.start()
        wait_until(lambda: host.call("stats")["workers"], "the worker to register again")
        ctypes.memset(held.address, 1, 9000)  # the region is still writable
        store.publish(held, 9000)
        assert store.flush(1e18)
        assert store.counters()["saves_lost"] == store.num_unpublished == 1
        assert hit_len(store, row_of(3)) == 0
        assert host.leftovers() == [] and host.tier()["used_bytes"] == 0
