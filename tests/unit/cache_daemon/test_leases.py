"""Leases, holds and TTLs in virtual time."""

from cache_daemon.leases import LeaseTable
from erllama_host.kv.segment import SegmentKind

A, B = (b"a" * 32, SegmentKind.BLOCK), (b"b" * 32, SegmentKind.TAIL)


def table() -> LeaseTable:
    return LeaseTable(ttl_s=60, hold_s=30, first_id=500)


def test_a_segment_is_free_after_its_last_lease():
    leases = table()
    first, second = leases.grant("w1", [A, B], 0.0), leases.grant("w2", [A], 1.0)
    assert first == 500 and second == 501
    assert leases.release(first, "w1").free == [B]
    assert leases.is_leased(A) and not leases.is_leased(B)
    assert leases.release(second, "w2").free == [A]
    assert leases.release(second, "w2").free == []


def test_nobody_releases_for_somebody_else():
    leases = table()
    lease = leases.grant("w1", [A], 0.0)
    assert leases.release(lease, "w2").free == [] and leases.is_leased(A)


def test_leases_of_the_dead_become_holds_for_a_while():
    leases = table()
    leases.grant("w1", [A], 0.0)
    ended = leases.owner_died("w1", 10.0)
    assert (ended.free, ended.by_death, ended.by_ttl) == ([A], [A], [])
    assert not leases.is_leased(A)
    assert leases.is_held(A, 39.0) and not leases.is_held(A, 40.0)
    assert leases.next_expiry() == 40.0
    leases.expire(41.0)
    assert leases.next_expiry() is None


def test_who_says_goodbye_leaves_no_hold():
    leases = table()
    leases.grant("w1", [A], 0.0)
    assert leases.owner_left("w1").free == [A]
    assert not leases.is_held(A, 0.1)


def test_the_ttl_ends_a_lease_and_says_that_it_proves_nothing():
    leases = table()
    leases.grant("w1", [A], 0.0)
    leases.grant("w2", [A, B], 30.0)
    assert leases.expire(59.0).by_ttl == []
    ended = leases.expire(60.0)
    assert ended.by_ttl == [A] and ended.free == []
    assert leases.expire(90.0).free == [A, B]
    assert len(leases) == 0


def test_the_next_expiry_is_the_earliest_whatever_ended_before():
    leases = table()
    first = leases.grant("w1", [A], 0.0)
    leases.grant("w2", [B], 5.0)
    assert leases.next_expiry() == 60.0
    leases.release(first, "w1")
    assert leases.next_expiry() == 65.0
    leases.grant("w3", [A], 10.0)
    leases.owner_died("w3", 12.0)
    leases.grant("w4", [A, B], 13.0)
    assert leases.next_expiry() == 42.0
    leases.owner_died("w4", 20.0)  # holds A again, for longer
    assert leases.next_expiry() == 50.0
    leases.expire(50.0)
    assert leases.next_expiry() == 65.0
