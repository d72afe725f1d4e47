"""The peer llama-server: started on a loopback port, asked over HTTP with the standard library.

A connection is opened before the clock starts, so that the peer is not charged for TCP.
"""

import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.setting import KV_TYPE, THREADS
from benchmarks.systems import Timing

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 300.0
_LOOPBACK = "127.0.0.1"


class LlamaServer:
    """One running llama-server."""

    name = "llama-server"

    def __init__(self, port: int) -> None:
        self._port = port

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Timing:
        """Generate greedily; the arrivals are those of its server-sent events."""
        body = {
            "prompt": list(prompt),
            "n_predict": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": True,
        }
        connection = http.client.HTTPConnection(_LOOPBACK, self._port, timeout=REQUEST_TIMEOUT_S)
        connection.connect()
        try:
            return _read_stream(connection, body)
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Whether the model is loaded and served."""
        connection = http.client.HTTPConnection(_LOOPBACK, self._port, timeout=1)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _read_stream(connection: http.client.HTTPConnection, body: dict[str, Any]) -> Timing:
    started = time.perf_counter()
    connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"llama-server answered {response.status}: {response.read(500)!r}")
    arrivals: list[float] = []
    predicted = 0
    while line := response.readline():
        if not line.startswith(b"data:"):
            continue
        moment = (time.perf_counter() - started) * 1e3
        event = json.loads(line[5:])
        if event.get("tokens") or event.get("content"):
            arrivals.append(moment)
        predicted = event.get("tokens_predicted", predicted)
        if event.get("stop"):
            break
    total_ms = (time.perf_counter() - started) * 1e3
    return Timing(started, tuple(arrivals or [total_ms]), total_ms, predicted)


def server_command(binary: Path, model: Path, port: int, n_seq_max: int, n_ctx: int) -> list[str]:
    """The command line: the host's threads, KV types and flash attention; one unified cache when it serves several."""
    command = [str(binary), "-m", str(model), "--host", _LOOPBACK, "--port", str(port), "-t", str(THREADS), "-fa", "on"]
    command += ["-c", str(n_ctx), "-np", str(n_seq_max), "-ctk", KV_TYPE, "-ctv", KV_TYPE, "--no-warmup"]
    return command + (["-kvu"] if n_seq_max > 1 else [])


@contextmanager
def llama_server(binary: Path, model: Path, n_ctx: int, n_seq_max: int = 1) -> Iterator[LlamaServer]:
    """A healthy server that ends with the block.

    Raises:
        RuntimeError: it ended, or was not healthy in time.
    """
    port = _free_port()
    process = subprocess.Popen(
        server_command(binary, model, port, n_seq_max, n_ctx),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        server = LlamaServer(port)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.healthy():
            if process.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {process.returncode} before it was healthy")
            if time.monotonic() > deadline:
                raise RuntimeError(f"llama-server was not healthy within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        yield server
    finally:
        process.kill()
        process.wait()


def server_version(binary: Path) -> str:
    """What `--version` says: llama.cpp's build number and commit."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"version: (.*)", answer.stderr + answer.stdout)
    return found.group(1) if found else "unknown"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
