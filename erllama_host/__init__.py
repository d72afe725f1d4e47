"""erllama-host: a supervised, multi-process host for GGUF language models.

The names exported here are the public Python API; importing them pulls in neither llama.cpp nor circus.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from erllama_host.client import AsyncClient as AsyncClient
    from erllama_host.client import Client as Client
    from erllama_host.errors import ErllamaError as ErllamaError

_LAZY = {
    "AsyncClient": "erllama_host.client",
    "Client": "erllama_host.client",
    "ErllamaError": "erllama_host.errors",
}
__all__ = ["AsyncClient", "Client", "ErllamaError", "__version__"]


def __getattr__(name: str) -> object:
    """Import the public classes on first use, so that `import erllama_host` stays within a few milliseconds."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
