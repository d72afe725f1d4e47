"""Bare ZeroMQ: a ROUTER in a process of its own that sends back what it gets; the floor under every round trip.

`python -m benchmarks.echo ENDPOINT` serves; `echo_round_trips` starts one and asks it.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from benchmarks.setting import ROOT
from erllama_host.process import die_with_parent
from erllama_host.supervisor import private_paths

MESSAGE = bytes(200)
TIMEOUT_MS = 10_000


def serve(endpoint: str) -> None:
    """Echo until killed, or until the parent ends."""
    die_with_parent()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        while True:
            router.send_multipart(router.recv_multipart())


@contextmanager
def bare_round_trip() -> Iterator[Callable[[], float]]:
    """A function that makes one round trip to an echo process and returns its seconds."""
    with private_paths() as paths:
        paths.prepare()
        endpoint = paths.ipc("echo.sock")
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo", endpoint], cwd=ROOT)
        try:
            with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
                dealer.linger, dealer.rcvtimeo = 0, TIMEOUT_MS
                dealer.connect(endpoint)

                def round_trip() -> float:
                    started = time.perf_counter()
                    dealer.send(MESSAGE)
                    dealer.recv()
                    return time.perf_counter() - started

                round_trip()
                yield round_trip
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    serve(sys.argv[1])
