"""A host for the length of a `with`: in a temporary directory, ended with the caller, nothing left behind."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erllama_host.config import Paths, parse_config
from erllama_host.supervisor.start import Progress, RunningHost, start_host
from erllama_host.supervisor.stop import stop_host


@contextmanager
def private_host(
    directory: Path | None = None, *, config_text: str = "", on_progress: Progress | None = None
) -> Iterator[RunningHost]:
    """Run a host in `directory` (None makes one under the temp directory), stop it and remove the directory at the end.

    Args:
        config_text: its erllama.toml.
    """
    base = directory or Path(tempfile.mkdtemp(prefix="erl-"))
    paths = Paths(home=base / "home", run=base / "run", config_file=base / "erllama.toml")
    config = parse_config(config_text)
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        paths.config_file.write_text(config_text, encoding="utf-8")
        host = start_host(paths, config, detach=False, on_progress=on_progress)
        try:
            yield host
        finally:
            stop_host(paths, drain_s=0.0, on_progress=on_progress)
            host.wait(5.0)
    finally:
        shutil.rmtree(base, ignore_errors=True)
