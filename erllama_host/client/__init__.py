"""The client library: `Client` for threads, `AsyncClient` for asyncio, and what they return.

    connection.py             everything under way with one host: the shell       (asyncio; one per client)
      stream_state.py         one stream through losses, repetitions, restarts    (pure)
      call_state.py           one call through loading models and reconnects      (pure)
    async_client.py, async_model.py, async_stream.py      the shell's own face
    client.py, model.py, stream.py, loop_thread.py        the same over a thread

Importing this package pulls in neither llama.cpp nor circus, and asyncio and zmq only when a client is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from erllama_host.client.client import Client
from erllama_host.client.infer_options import InferOptions
from erllama_host.client.limits import Patience
from erllama_host.client.model import Model
from erllama_host.client.results import Completion, Piece, Prefilled, StreamStats
from erllama_host.client.stream import Stream

if TYPE_CHECKING:
    from erllama_host.client.async_client import AsyncClient
    from erllama_host.client.async_model import AsyncModel
    from erllama_host.client.async_stream import AsyncStream

_LAZY = {
    "AsyncClient": "erllama_host.client.async_client",
    "AsyncModel": "erllama_host.client.async_model",
    "AsyncStream": "erllama_host.client.async_stream",
}
__all__ = [
    "AsyncClient",
    "AsyncModel",
    "AsyncStream",
    "Client",
    "Completion",
    "InferOptions",
    "Model",
    "Patience",
    "Piece",
    "Prefilled",
    "Stream",
    "StreamStats",
]


def __getattr__(name: str) -> object:
    """Import the asyncio half on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
