"""Bytes of weights, KV and buffers. llama.cpp tells the sizes of its buffers in its log and nowhere else."""

import re
from collections.abc import Iterable
from typing import Any

from erllama_host.config.model import ModelConfig
from workers.backend.llama.library import lib
from workers.backend.values import Footprint, ModelFacts

_BUFFER = re.compile(r"(?P<place>\S+)\s+(?P<what>model|KV|RS|compute|output) buffer size\s*=\s*(?P<mib>[\d.]+) MiB")
_TYPE_BITS = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}
_MIB = 1 << 20


class FootprintLog:
    """Adds up what the log said; contexts can be forgotten again."""

    def __init__(self, load_log: Iterable[str]) -> None:
        self._model = _sum_buffers(load_log)
        self._contexts = (0, 0)

    def add_context(self, log: Iterable[str]) -> None:
        host, device = _sum_buffers(log)
        self._contexts = (self._contexts[0] + host, self._contexts[1] + device)

    def forget_contexts(self) -> None:
        self._contexts = (0, 0)

    def footprint(self) -> Footprint:
        return Footprint(
            host_model_bytes=self._model[0],
            host_context_bytes=self._contexts[0],
            device_model_bytes=self._model[1],
            device_context_bytes=self._contexts[1],
        )


def _sum_buffers(log: Iterable[str]) -> tuple[int, int]:
    """Host and device bytes; pinned host memory of a GPU backend is called `<device>_Host`."""
    host = device = 0
    for line in log:
        match = _BUFFER.search(line)
        if match is None:
            continue
        size = int(float(match["mib"]) * _MIB)
        if match["place"].startswith("CPU") or match["place"].endswith("_Host"):
            host += size
        else:
            device += size
    return host, device


def bytes_per_cell(model: Any, facts: ModelFacts, config: ModelConfig) -> int:
    """KV bytes of one token, from above: layers without attention count as if they had it only where heads are
    unknown.
    """
    if not facts.has_cells or facts.is_embedding_model:
        return 0
    heads = max(1, int(lib.llama_model_n_head(model)))
    width = int(lib.llama_model_n_embd(model)) // heads
    key = int(facts.metadata.get(f"{facts.architecture}.attention.key_length", width))
    value = int(facts.metadata.get(f"{facts.architecture}.attention.value_length", width))
    bits = key * _TYPE_BITS[config.type_k.lower()] + value * _TYPE_BITS[config.type_v.lower()]
    return int(facts.n_layer * max(1, int(lib.llama_model_n_head_kv(model))) * bits / 8)
