"""What a worker is started from: its spec file and its watcher. Also the checks of a model file that need no worker."""

import shlex
import sys
from pathlib import Path
from typing import Any

import msgspec

from erllama_host.config import Config, ModelConfig, ModelSpec, Paths, resolve_tier
from erllama_host.controller.files import write_durably
from erllama_host.controller.lifecycle import Model
from erllama_host.errors import InvalidRequest, ModelLoadFailed
from erllama_host.supervisor.notes import watcher_name

GGUF_MAGIC = b"GGUF"
HOOKS = ("before_start", "before_spawn", "after_spawn", "before_reap", "after_reap")


def write_spec(paths: Paths, config: Config, model: Model) -> None:
    """Write `$ERLLAMA_RUN/models/<id>.json`; the worker reads nothing else, so it can respawn without us."""
    spec = ModelSpec(
        model_id=model.model_id,
        load_id=model.load_id,
        config=msgspec.structs.replace(model.config, tier_srv=resolve_tier(model.config, config.cache), tier=None),
        adapters=model.adapters,
        cache=msgspec.to_builtins(config.cache),
        home=str(paths.home),
    )
    write_durably(paths.spec_file(model.model_id), msgspec.json.encode(spec))


def watcher_command(model_id: str) -> str:
    """What circus runs."""
    return f"{shlex.quote(sys.executable)} -m workers {model_id}"


def watcher_options(paths: Paths, config: Config, model: Model) -> dict[str, Any]:
    """Options of the watcher of a model, for circus's `add`."""
    return {
        "singleton": True,
        "copy_env": True,
        "env": {
            "ERLLAMA_MAX_RESTARTS": str(model.config.max_restarts),
            "ERLLAMA_WITHIN_S": str(model.config.within_s),
        },
        "stop_signal": 15,
        "graceful_timeout": model.config.stop_s,
        "close_child_stdout": True,
        "stderr_stream": {
            "class": "FileStream",
            "filename": str(log_file(paths, model.model_id)),
            "max_bytes": config.host.log_max_bytes,
            "backup_count": config.host.log_backups,
        },
        "hooks": {hook: [f"erllama_host.supervisor.hooks.{hook}", False] for hook in HOOKS},
    }


def log_file(paths: Paths, model_id: str) -> Path:
    """The log of a model's worker."""
    return paths.logs / f"{watcher_name(model_id).replace(':', '-')}.log"


def check_model_file(config: ModelConfig) -> None:
    """Refuse early what cannot be a model; what llama.cpp thinks of it only a worker can find out.

    Raises:
        InvalidRequest: the path is relative, or none. ModelLoadFailed: no such file, not a file, not readable, not a GGUF.
    """
    if config.backend != "llama":
        return
    path = Path(config.path)
    if "\0" in config.path:
        raise InvalidRequest(f"path {config.path!r} has a NUL character", field="path")
    if not path.is_absolute():
        raise InvalidRequest(
            f"path {config.path!r} must be absolute: the host has another directory than you", field="path"
        )
    try:
        if path.is_dir():
            raise ModelLoadFailed(f"{path} is a directory, not a GGUF file")
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise ModelLoadFailed(f"{path} is not a regular file")
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except FileNotFoundError as error:
        raise ModelLoadFailed(f"{path} does not exist") from error
    except OSError as error:
        raise ModelLoadFailed(f"{path} cannot be read: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise ModelLoadFailed(
            f"{path} is not a GGUF file: it begins with {magic.decode('ascii', 'backslashreplace')!r}"
        )
