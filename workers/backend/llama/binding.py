"""llama-cpp-python's low-level API without the rest of that package.

Importing the package runs its `__init__`, which brings chat formats, jinja2, a disk cache and multiprocessing: 50 ms in every life
of a worker, for nothing that is used here. So the package is entered without running it, and its version read from its text.
"""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "llama_cpp"
_VERSION = re.compile(r"^__version__ = [\"']([^\"']+)[\"']", re.MULTILINE)


def _enter() -> str:
    """Make `llama_cpp.<module>` importable, by the whole package where it is not as expected; returns its version.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is not None and spec.origin is not None:
            match = _VERSION.search(Path(spec.origin).read_text(encoding="utf-8"))
            if match is not None:
                package: ModuleType = importlib.util.module_from_spec(spec)
                sys.modules[PACKAGE] = package
                package.__dict__["__version__"] = match[1]
    return str(importlib.import_module(PACKAGE).__version__)


VERSION = _enter()

import llama_cpp.llama_cpp as low_level  # noqa: E402  # the package has to be entered first

lib: Any = low_level
"""The low-level API: untyped, hence the `Any`s of this package."""
