"""LoRA adapters of one model: loaded once, attached per context. Owned by `LlamaBackend`; engine thread only."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erllama_host.errors import InvalidRequest
from workers.backend.llama.library import NATIVE_LOG, lib
from workers.backend.values import BackendFault, LoraHandle

AdapterSet = tuple[tuple[LoraHandle, float], ...]


class Adapters:
    """Loaded adapters by handle; handles are never used twice."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._loaded: dict[LoraHandle, Any] = {}
        self._last = 0

    def load(self, path: str) -> LoraHandle:
        """See `Backend.load_adapter`."""
        if not Path(path).is_file():
            raise InvalidRequest(f"cannot load adapter {path}: there is no such file", field="path")
        NATIVE_LOG.clear()
        native = lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        # A failure is a pointer object that is false, not None.
        if not native:
            raise InvalidRequest(
                f"cannot load adapter {path}: {NATIVE_LOG.reason('llama.cpp gave no reason')}", field="path"
            )
        self._last += 1
        handle = LoraHandle(self._last)
        self._loaded[handle] = native
        return handle

    def free(self, handle: LoraHandle) -> None:
        lib.llama_adapter_lora_free(self._loaded.pop(handle))

    def attach(self, context: Any, adapters: AdapterSet) -> None:
        """Make `context` compute with exactly these. The first decode after a change costs 2.5 ms more."""
        count = len(adapters)
        natives = [self._loaded[handle] for handle, _ in adapters]
        pointers = (lib.llama_adapter_lora_p_ctypes * count)(*natives) if count else None
        scales = (ctypes.c_float * count)(*[scale for _, scale in adapters]) if count else None
        code = lib.llama_set_adapters_lora(context, pointers, count, scales)
        if code != 0:
            raise BackendFault(f"llama_set_adapters_lora returned {code}")

    def close(self) -> None:
        for handle in list(self._loaded):
            self.free(handle)


def normalized(adapters: Sequence[tuple[LoraHandle, float]]) -> AdapterSet:
    """The set in one order and without scale 0, which computes the same as leaving the adapter out."""
    return tuple(sorted((handle, float(scale)) for handle, scale in adapters if scale != 0))
