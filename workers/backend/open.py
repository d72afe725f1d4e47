"""Opening the backend that a model's configuration names."""

from erllama_host.config.model import ModelConfig
from workers.backend.base import Backend, Progress
from workers.backend.stub.backend import open_stub


def open_backend(config: ModelConfig, on_progress: Progress) -> Backend:
    """Load the model of `config` and make its context; called by the thread that will own it.

    Raises:
        ModelLoadFailed: the file or the options cannot be used; the message carries the library's own reason.
    """
    if config.backend == "stub":
        return open_stub(config, on_progress)
    # Only here: llama_cpp loads its shared libraries when it is imported, which a stub does without.
    from workers.backend.llama.backend import open_llama

    return open_llama(config, on_progress)
