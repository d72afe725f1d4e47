"""Silent processes are killed, but only for their own silence."""

from cache_daemon.watch import Watch


def watching():
    killed: list[int] = []
    return Watch(killed.append), killed


def rounds(watch, start, end, alive=lambda _pid: True):
    at = start
    while at <= end:
        watch.round(at, alive)
        at += 0.5


def test_silence_is_killed_once():
    watch, killed = watching()
    watch.ping(b"c", 42, 15.0, 0.0)
    rounds(watch, 0.0, 15.0)
    assert killed == []
    rounds(watch, 15.5, 40.0)
    assert killed == [42]


def test_pings_keep_alive_and_zero_ends_the_watching():
    watch, killed = watching()
    for at in range(0, 60, 5):
        watch.ping(b"c", 42, 15.0, float(at))
        rounds(watch, at, at + 4.5)
    watch.ping(b"c", 0, 15.0, 60.0)
    rounds(watch, 60.0, 100.0)
    assert killed == []


def test_time_in_which_the_daemon_was_stopped_does_not_count():
    watch, killed = watching()
    watch.ping(b"c", 42, 15.0, 0.0)
    rounds(watch, 0.0, 5.0)
    rounds(watch, 1000.0, 1014.0)  # stopped in between
    assert killed == []
    rounds(watch, 1014.5, 1020.0)
    assert killed == [42]


def test_the_dead_are_left_in_peace():
    watch, killed = watching()
    watch.ping(b"c", 42, 15.0, 0.0)
    rounds(watch, 0.0, 40.0, alive=lambda _pid: False)
    assert killed == []
