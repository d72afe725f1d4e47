"""The peer llama-server, asked through its native completion endpoint with token ids."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.http_peer import LOOPBACK, free_port, post_events, running
from benchmarks.setting import KV_TYPE, THREADS
from benchmarks.systems import Timing, never


class LlamaServer:
    """One running llama-server."""

    name = "llama-server"

    def __init__(self, port: int) -> None:
        self._port = port

    def stream(self, prompt: Sequence[int], num_tokens: int, is_enough: Callable[[], bool] = never) -> Timing:
        """Generate greedily; the arrivals are those of its events with tokens."""
        body = {
            "prompt": list(prompt),
            "n_predict": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
        }
        arrivals_ms: list[float] = []
        predicted = 0
        called_at_s = read_at_s = time.perf_counter()
        with closing(post_events(self._port, "/completion", body)) as events:
            for called_at_s, read_at_s, event in events:
                predicted = event.get("tokens_predicted", predicted)
                if event.get("tokens") or event.get("content"):
                    arrivals_ms.append((read_at_s - called_at_s) * 1e3)
                    if is_enough():
                        break
        total_ms = (read_at_s - called_at_s) * 1e3
        return Timing(called_at_s, tuple(arrivals_ms or [total_ms]), total_ms, predicted)


def server_command(binary: Path, model: Path, port: int, n_seq_max: int, n_ctx: int) -> list[str]:
    """The command line: the host's threads, KV types and flash attention; one unified cache when it serves several."""
    command = [str(binary), "-m", str(model), "--host", LOOPBACK, "--port", str(port), "-t", str(THREADS), "-fa", "on"]
    command += ["-c", str(n_ctx), "-np", str(n_seq_max), "-ctk", KV_TYPE, "-ctv", KV_TYPE, "--no-warmup"]
    return command + (["-kvu"] if n_seq_max > 1 else [])


@contextmanager
def llama_server(binary: Path, model: Path, n_ctx: int, n_seq_max: int = 1) -> Iterator[LlamaServer]:
    """A healthy server that ends with the block.

    Raises:
        RuntimeError: it ended, or was not healthy in time.
    """
    port = free_port()
    with running(server_command(binary, model, port, n_seq_max, n_ctx), port, "/health"):
        yield LlamaServer(port)


def server_version(binary: Path) -> str:
    """What `--version` says: llama.cpp's build number and commit."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    found = re.search(r"version: (.*)", answer.stderr + answer.stdout)
    return found.group(1) if found else "unknown"
