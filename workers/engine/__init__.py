"""The engine: one thread that owns the model and computes for many requests at a time. See docs/internals/engine.md."""

from workers.engine.load import Ready
from workers.engine.loop import Engine, EngineHooks

__all__ = ["Engine", "EngineHooks", "Ready"]
