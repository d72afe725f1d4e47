"""Which files a remote client may name."""

from pathlib import Path

from erllama_host.errors import Forbidden


def check_allowed_path(path: str, directories: list[str]) -> None:
    """See that `path`, with links followed, is inside one of `directories` (`host.model_dirs`).

    Raises:
        Forbidden: it is not. The message does not say whether it exists.
    """
    if "\0" in path:
        raise Forbidden(f"{path!r} has a NUL character")
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # until Python 3.13: links that go in a circle
        raise Forbidden(f"{path} cannot be followed: {error}") from error
    if not any(real.is_relative_to(Path(directory).resolve()) for directory in directories):
        raise Forbidden(f"{path} is outside of host.model_dirs: remote clients may load from there only")
