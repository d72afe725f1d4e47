"""A private cache daemon and clients of it, for measuring both without a model."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from benchmarks.cache_rows import BLOCK_TOKENS, SPACE
from benchmarks.setting import ROOT
from cache_daemon.settings import plan_tiers
from erllama_host.config import Paths, load_config
from erllama_host.ids import new_routing_id
from erllama_host.observability import Log
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, encode_body, encode_envelope
from erllama_host.protocol.calls import CacheAnswer, CacheCall
from erllama_host.supervisor import private_paths
from erllama_host.transport.sockets import dealer
from workers.kv_store import KvStore, cache_endpoint
from workers.kv_types import AlreadyThere, Refused, Reservation, SegmentSpec

GIB = 1 << 30
START_TIMEOUT_S = 120.0


def room_for(store: KvStore, specs: Sequence[SegmentSpec]) -> list[Reservation]:
    """A region for each segment, once all are there.

    Raises:
        RuntimeError: one was refused, or is stored already.
    """
    regions: list[Reservation] = []
    for outcome in store.reserve(specs).wait():
        if isinstance(outcome, AlreadyThere | Refused):
            raise RuntimeError(f"no room: {outcome}")
        regions.append(outcome)
    return regions


class CacheBench:
    """A daemon's directory. `start` it, then make stores."""

    def __init__(self, paths: Paths, ram_budget_bytes: int) -> None:
        self.paths = paths
        self.paths.config_file.write_text(
            f"[host]\nlog_level = 'error'\n[cache]\nram_budget_bytes = {ram_budget_bytes}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._stores: list[KvStore] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def tier_path(self) -> Path:
        """Directory of the built-in tier in shared memory."""
        plan = plan_tiers(load_config(self.paths.config_file).cache, self.paths)
        return Path(plan.tiers[0].path)

    def start(self) -> float:
        """Start the daemon; returns the seconds until its index is complete."""
        started = time.monotonic()
        env = os.environ | self.paths.environment()
        self._process = subprocess.Popen([sys.executable, "-m", "cache_daemon"], cwd=ROOT, env=env)
        while self.stats(timeout_s=START_TIMEOUT_S)["recovering"]:
            time.sleep(0.1)
        return time.monotonic() - started

    def store(self) -> KvStore:
        """A registered client in this process."""
        store = KvStore(
            endpoint=cache_endpoint(self.paths.run),
            model_id="bench",
            incarnation=os.urandom(4).hex(),
            namespace=SPACE.root,
            tier="ram",
            block_tokens=BLOCK_TOKENS,
            on_wake=lambda: None,
            timeout_s=10.0,
            log=Log("cache-client", "error"),
        )
        self._stores.append(store)
        while not store.connected:
            time.sleep(0.005)
        return store

    def writer(self, number: int) -> subprocess.Popen[str]:
        """A process that holds a reservation of the first block of a row, until it is killed."""
        command = [sys.executable, "-m", "benchmarks.cache_writer", cache_endpoint(self.paths.run), str(number)]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child.stdout:
            if child.stdout.readline() != "held\n":
                raise RuntimeError("the writing process did not come up")
        return child

    def stats(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the daemon says of itself."""
        socket = dealer(self._context, new_routing_id())
        socket.connect(cache_endpoint(self.paths.run))
        try:
            head = encode_envelope(Envelope(PROTOCOL_VERSION, "cache", "1"))
            socket.send_multipart([head, encode_body(CacheCall(op="stats"))])
            if not socket.poll(int(timeout_s * 1000)):
                raise TimeoutError("the cache daemon does not answer")
            return decode_body("cache", socket.recv_multipart()[1], CacheAnswer).result
        finally:
            socket.close(linger=0)

    def close(self) -> None:
        """End everything that was started."""
        for store in self._stores:
            store.close(time.monotonic() + 2)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._context.term()


@contextmanager
def cache_bench(ram_budget_bytes: int = 4 * GIB) -> Iterator[CacheBench]:
    """A private daemon's directory, removed afterwards with its shared memory."""
    with private_paths() as paths:
        bench = CacheBench(paths, ram_budget_bytes)
        try:
            yield bench
        finally:
            bench.close()
