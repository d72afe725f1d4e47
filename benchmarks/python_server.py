"""The peer llama-cpp-python, its own OpenAI-like server: one sequence, one request at a time. Optional.

It needs the packages of `llama-cpp-python[server]`; without them it is left out.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.http_peer import LOOPBACK, free_port, post_events, running
from benchmarks.setting import THREADS
from benchmarks.systems import Timing

NEEDS = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")


class PythonServer:
    """One running server of llama-cpp-python."""

    name = "llama-cpp-python's server"

    def __init__(self, port: int) -> None:
        self._port = port

    def stream_text(self, prompt: str, num_tokens: int, banned: Sequence[int] = ()) -> Timing:
        """Generate greedily from text, which is all it takes; `banned` ids (end tokens) never come. One event is one token."""
        body = {
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0,
            "stream": True,
            "logit_bias": {str(token): -100 for token in banned},
        }
        moments = [
            (called_at_s, read_at_s)
            for called_at_s, read_at_s, event in post_events(self._port, "/v1/completions", body)
            if event["choices"][0]["text"]
        ]
        called_at_s = moments[0][0]
        arrivals_ms = tuple((read_at_s - called_at_s) * 1e3 for _, read_at_s in moments)
        return Timing(called_at_s, arrivals_ms, arrivals_ms[-1], len(arrivals_ms))


def is_available() -> bool:
    """Whether its packages are installed."""
    return all(find_spec(name) is not None for name in NEEDS)


@contextmanager
def python_server(model: Path, n_ctx: int) -> Iterator[PythonServer]:
    """A healthy server that ends with the block.

    Raises:
        RuntimeError: it ended, or was not healthy in time.
    """
    port = free_port()
    options = {
        "model": model,
        "host": LOOPBACK,
        "port": port,
        "n_ctx": n_ctx,
        "n_threads": THREADS,
        "n_threads_batch": THREADS,
        "flash_attn": True,
    }
    command = [sys.executable, "-m", "llama_cpp.server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    with running(command, port, "/v1/models"):
        yield PythonServer(port)
