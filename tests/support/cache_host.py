"""A private cache daemon as a real process, for tests: start, kill, restart, ask, and nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from cache_daemon.settings import plan_tiers
from erllama_host.config import Paths, load_config
from erllama_host.ids import new_routing_id
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, decode_envelope, encode_body, encode_envelope
from erllama_host.protocol.calls import CacheAnswer, CacheCall
from erllama_host.protocol.inference import ErrorBody
from erllama_host.transport.sockets import dealer
from tests.support.rows import SPACE
from workers.kv_store import KvStore, cache_endpoint

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        time.sleep(0.01)
    return value


class CacheHost:
    """A directory with a daemon in it."""

    def __init__(self, config: str = "") -> None:
        """`config`: lines for the section `[cache]`, and further sections."""
        self.base = Path(tempfile.mkdtemp(prefix="kv", dir="/tmp"))
        self.paths = Paths(home=self.base / "home", run=self.base / "run", config_file=self.base / "erllama.toml")
        self.paths.config_file.write_text(f"[cache]\nblock_tokens = 16\nram_budget_bytes = {8 * MIB}\n{config}\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = self.base / "log"
        self._stores: list[KvStore] = []
        self._context = zmq.Context()

    def __enter__(self) -> "CacheHost":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores:
            store.close(time.monotonic() + 5)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._context.term()
        for tier in plan_tiers(load_config(self.paths.config_file).cache, self.paths).tiers:
            shutil.rmtree(tier.path, ignore_errors=True)
        shutil.rmtree(self.base)

    def start(self, wait: bool = True) -> None:
        env = os.environ | self.paths.environment()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "cache_daemon"], cwd=ROOT, env=env, stderr=log)
        if wait:
            wait_until(self.recovered, "the daemon to answer")

    def recovered(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log_path.read_text()
        return not (self.try_call("stats", timeout_s=0.5) or {"recovering": True})["recovering"]

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def store(self, model: str = "tiny", tier: str = "ram", wait: bool = True, **options: Any) -> KvStore:
        """A worker's client in this process."""
        fields = {"namespace": SPACE.root, "on_wake": lambda: None, "timeout_s": 10.0, "block_tokens": 16, **options}
        store = KvStore(
            endpoint=cache_endpoint(self.paths.run),
            model_id=model,
            incarnation=os.urandom(4).hex(),
            tier=tier,
            **fields,
        )
        self._stores.append(store)
        if wait:
            wait_until(lambda: store.connected, "the client to be registered")
        return store

    def call(self, op: str, timeout_s: float = 20.0, **arguments: Any) -> dict[str, Any]:
        """An operation of the `cache` call."""
        answer = self.try_call(op, timeout_s, **arguments)
        assert answer is not None, f"no answer to {op}"
        return answer

    def try_call(self, op: str, timeout_s: float = 20.0, **arguments: Any) -> dict[str, Any] | None:
        socket = dealer(self._context, new_routing_id())
        socket.connect(cache_endpoint(self.paths.run))
        try:
            body = encode_body(CacheCall(op=op, arguments=arguments))
            socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, "cache", "1")), body])
            if not socket.poll(int(timeout_s * 1000)):
                return None
            head, body = socket.recv_multipart()
        finally:
            socket.close(linger=0)
        if decode_envelope(head).kind == "error":
            return {"error": decode_body("error", body, ErrorBody).message}
        return decode_body("cache", body, CacheAnswer).result

    def tier(self, name: str = "ram") -> dict[str, Any]:
        return self.call("stats")["tiers"][name]

    def tier_path(self, name: str = "ram") -> Path:
        return Path(self.tier(name)["path"])

    def segment_files(self, name: str = "ram") -> list[Path]:
        return sorted(self.tier_path(name).glob("??/*.*"))

    def leftovers(self, name: str = "ram") -> list[Path]:
        """Temporary files."""
        return list((self.tier_path(name) / "tmp").iterdir())
