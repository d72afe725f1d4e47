"""An engine on the stub beside a real cache daemon that is stopped, or killed, while a row is computed: it gets there anyway."""

import signal

import pytest

from tests.support.cache_host import CacheHost, wait_until
from tests.support.engines import Harness

pytestmark = pytest.mark.process
PROMPT = "the quick brown fox jumps over the lazy dog, again and again, until it is tired"


def engine(cache):
    """An engine whose lookups give up after the 250 ms of a real host."""

    def make(namespace, wake):
        return cache.store(namespace=namespace, on_wake=wake, timeout_s=0.25)

    return Harness(store=make, cache={"block_tokens": 16})


def everything_is_saved(harness):
    """A look around as the sleeping engine has it now and then; whether nothing is left to save."""
    store = harness.core.kv.store
    was_settled = not store.pending_count()  # before the look: what was lost since, only the next one notices
    harness.clock.now += 10.0
    harness.tick(5)
    return was_settled and all(live.is_saved for live in harness.core.pool.cells) and not store.pending_count()


@pytest.mark.parametrize("mishap", ["stopped for a while", "killed", "killed under a save"])
def test_a_row_that_ends_without_a_daemon_is_warm_for_the_next_worker(mishap):
    with CacheHost() as cache:
        first = engine(cache)
        ref = first.submit(PROMPT, max_tokens=40)
        if mishap == "killed under a save":
            first.until(lambda: first.core.counters["saves_cold"])
            cache.kill()
        elif mishap == "killed":
            cache.kill()
        else:
            cache.signal(signal.SIGSTOP)
        end = first.finish(ref)
        if mishap == "stopped for a while":
            cache.signal(signal.SIGCONT)
        else:
            cache.start()
        wait_until(lambda: everything_is_saved(first), "the row to be saved")
        second = engine(cache)  # the first is as good as killed: nothing asks it any more
        again = second.run(first.tokens(PROMPT) + list(end.generated), max_tokens=1)
        assert (again.cache.kind, again.cache.read_tokens) == ("exact", end.finish_len)
