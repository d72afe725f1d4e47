"""What peers with an HTTP interface have in common: a process on a loopback port, and streams of server-sent events.

A connection is opened before the clock starts, so that a peer is not charged for TCP.
"""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.setting import ROOT

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 300.0


def post_events(
    port: int, path: str, body: dict[str, Any]
) -> Generator[tuple[float, float, dict[str, Any]], None, None]:
    """POST `body`; yields (when the call was made, when the event was read; both `time.perf_counter()`), and the event.

    Raises:
        RuntimeError: the peer refused.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=REQUEST_TIMEOUT_S)
    connection.connect()
    try:
        called_at_s = time.perf_counter()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{path} answered {response.status}: {response.read(500)!r}")
        while line := response.readline():
            if line.startswith(b"data:") and not line.startswith(b"data: [DONE]"):
                yield called_at_s, time.perf_counter(), json.loads(line[5:])
    finally:
        connection.close()


def answers(port: int, path: str) -> bool:
    """Whether GET `path` is answered with 200."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def running(command: Sequence[str], port: int, health_path: str) -> Iterator[None]:
    """The peer's process, for the length of the block; begins when it is healthy.

    Raises:
        RuntimeError: it ended, or was not healthy in time.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.mortal", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(port, health_path):
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with code {process.returncode} before it was healthy")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} was not healthy within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
