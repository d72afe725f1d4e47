"""`erllama keys new | list | remove`: who may connect from other machines, and as what."""

from collections.abc import Callable
from typing import Any

COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = ()
