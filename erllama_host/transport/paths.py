"""Which files a remote client may name."""

from pathlib import Path

from erllama_host.errors import Forbidden


def check_allowed_path(path: str, directories: list[str]) -> None:
    """See that `path`, with links followed, is inside one of `directories` (`host.model_dirs`).

    Raises:
        Forbidden: it is not. The message does not say whether it exists.
    """
    real = Path(path).resolve()
    if not any(real.is_relative_to(Path(directory).resolve()) for directory in directories):
        raise Forbidden(f"{path} is outside of host.model_dirs: remote clients may load from there only")
