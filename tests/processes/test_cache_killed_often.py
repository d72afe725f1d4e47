"""A cache daemon that is killed again and again, each time soon after it has come back, does not take the host with it."""

import time

import psutil
import pytest

from erllama_host import Client
from erllama_host.supervisor import private_host

pytestmark = pytest.mark.process
NUM_KILLS = 5  # more than the lives without readiness after which a process is given up
BOUND_S = 60.0


def _daemon(run: str, not_pid: int) -> psutil.Process:
    """The cache daemon of the host at `run`, once it is another one than `not_pid`."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline:
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("ERLLAMA_RUN") == run and "cache_daemon" in process.cmdline()
            except psutil.Error:
                continue
            if ours and process.pid != not_pid:
                return process
        time.sleep(0.02)
    raise AssertionError("no cache daemon came")


def _wait_until_cache_answers(host: Client) -> None:
    deadline = time.monotonic() + BOUND_S
    while host.counters()["cache_available"] != 1:
        assert time.monotonic() < deadline, "the cache did not come back"
        time.sleep(0.02)


def test_the_host_outlives_many_short_lives_of_its_cache_daemon() -> None:
    with private_host() as running, Client(running.paths.endpoint) as host:
        _wait_until_cache_answers(host)
        pid = 0
        for _ in range(NUM_KILLS):
            daemon = _daemon(str(running.paths.run), pid)
            pid = daemon.pid
            daemon.kill()
            psutil.wait_procs([daemon], timeout=BOUND_S)
            _wait_until_cache_answers(host)
        assert not (running.paths.run / "gave_up").exists()
