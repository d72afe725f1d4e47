"""A private host for a part: its own directories, gone afterwards together with every process of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import HostProcess, host_processes, kill_leftovers
from benchmarks.setting import KV_TYPE, THREADS
from benchmarks.systems import Timing, never
from erllama_host import Client
from erllama_host.client import Model
from erllama_host.config import Config, Paths
from erllama_host.supervisor import RunningHost, private_paths, start_host, stop_host

WAIT_S = 60.0
DRAIN_S = 5.0
STUB_PROMPT = tuple(range(65, 97))
"""32 ids that the stub knows: its vocabulary is bytes."""


class HostModel:
    """One model of a host, as a `System`."""

    name = "host"

    def __init__(self, model: Model) -> None:
        self.model = model

    def stream(self, prompt: Sequence[int], num_tokens: int, is_enough: Callable[[], bool] = never) -> Timing:
        """Generate greedily through the public client."""
        started = time.perf_counter()
        arrivals: list[float] = []
        received = 0
        with self.model.infer(prompt, max_tokens=num_tokens, ignore_eos=True) as stream:
            for piece in stream:
                if piece.token_ids:
                    arrivals.append((time.perf_counter() - started) * 1e3)
                    received += len(piece.token_ids)
                    if is_enough():
                        break
        total_ms = (time.perf_counter() - started) * 1e3
        kind = stream.stats.cache.kind if stream.stats is not None else ""
        return Timing(started, tuple(arrivals), total_ms, received, kind)


class BenchmarkHost:
    """A running host and a client of it.

    Attributes:
        start_s: how long the last start took until the host answered.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.client: Client
        self.start_s = 0.0
        self._running: RunningHost

    def start(self) -> None:
        """Start it; returns when it answers."""
        started = time.perf_counter()
        self._running = start_host(self.paths, Config(), detach=False)
        self.start_s = time.perf_counter() - started
        self.client = Client(self.paths.endpoint)

    def stop(self) -> None:
        """Stop it in order."""
        self.client.close()
        stop_host(self.paths, drain_s=DRAIN_S)
        self._running.wait(WAIT_S)

    def restart(self) -> None:
        """A full stop and start; the models come back with it."""
        self.stop()
        self.start()

    def load(self, path: Path, model_id: str, **config: Any) -> HostModel:
        """Load a real model with the threads and KV types that every system of the benchmarks has."""
        common: dict[str, Any] = {
            "n_threads": THREADS,
            "n_threads_batch": THREADS,
            "type_k": KV_TYPE,
            "type_v": KV_TYPE,
            "flash_attn": True,
            "max_restarts": 1000,
        }
        return HostModel(self.client.load_model(str(path), model_id=model_id, **{**common, **config}))

    def load_stub(self, model_id: str, **config: Any) -> HostModel:
        """Load a stub: no computing, so that what remains is the host's own cost."""
        return HostModel(self.client.load_model("", model_id=model_id, backend="stub", **config))

    def model(self, model_id: str) -> HostModel:
        """A model that is loaded, e.g. after a restart."""
        return HostModel(self.client.model(model_id))

    def processes(self) -> list[HostProcess]:
        """Every process of this host."""
        return host_processes(self.paths.run)

    def process(self, role: str) -> HostProcess:
        """The process of a role; waits for it.

        Raises:
            TimeoutError: there was none within WAIT_S.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            found = [process for process in self.processes() if process.role == role]
            if found:
                return found[0]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no process of role {role} within {WAIT_S:.0f} s")
            time.sleep(0.02)


@contextmanager
def benchmark_host() -> Iterator[BenchmarkHost]:
    """A host that ends with the block, whatever happened in it.

    Raises:
        RuntimeError: the orderly stop left processes behind (they are killed first).
    """
    with private_paths() as paths:
        host = BenchmarkHost(paths)
        try:
            host.start()
            try:
                yield host
            finally:
                host.stop()
        finally:
            left = kill_leftovers(paths.run)
    if left:
        raise RuntimeError(f"the host left processes behind: {', '.join(left)}")
