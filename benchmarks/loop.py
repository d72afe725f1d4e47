"""The plainest fast loop over llama.cpp's C API, in a process of its own: what the host is measured against.

Reads one JSON command per line from stdin, answers one JSON line on stdout; ends with stdin. `inprocess.py` is its other end.

    {"op": "open", "model": PATH, "n_ctx": N, "n_seq_max": N, "threads": N}   → {"load_s", "resident_bytes"}; {"error"} ends it
    {"op": "tokenize", "text": TEXT}                                          → {"tokens": [...]}
    {"op": "prefill", "prompt": [...]}                                        → {"prefill_s"} until the first token is sampled
    {"op": "generate", "prompts": [[...], ...], "num_tokens": N}              → {"wall_s", "decode_s", "num_tokens"}

A step is what the host's engine does too: fill the batch, decode, sample, turn the token into text. `decode_s` is the part
spent inside llama_decode.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp.llama_cpp as llama
import psutil

from erllama_host.process import die_with_parent

N_BATCH = 512
PIECE_BYTES = 128
FLASH_ATTENTION_ON = 1


def _ignore(_level: int, _text: bytes, _data: Any) -> None:
    """llama.cpp's log would only be in the way."""


_SILENCE = llama.llama_log_callback(_ignore)  # llama.cpp keeps a pointer: it lives as long as the process


class Loop:
    """One context, one greedy sampler. Owns everything it opens until the process ends."""

    def __init__(self, model: str, n_ctx: int, n_seq_max: int, threads: int) -> None:
        llama.llama_log_set(_SILENCE, None)
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(model.encode(), llama.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._vocab = llama.llama_model_get_vocab(self._model)
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = n_ctx, N_BATCH, n_seq_max
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.flash_attn_type = True, FLASH_ATTENTION_ON
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {n_ctx} tokens")
        self._memory = llama.llama_get_memory(self._context)
        self._sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        llama.llama_sampler_chain_add(self._sampler, llama.llama_sampler_init_greedy())
        self._batch = llama.llama_batch_init(N_BATCH, 0, 1)
        self._piece = ctypes.create_string_buffer(PIECE_BYTES)
        self._held: list[list[int]] = []
        self.decode_s = 0.0

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, with the special tokens the model wants around a prompt."""
        data = text.encode()
        room = (llama.llama_token * (len(data) + 16))()
        count = llama.llama_tokenize(self._vocab, data, len(data), room, len(room), True, False)
        return list(room[:count])

    def clear(self) -> None:
        """Forget all sequences."""
        llama.llama_memory_clear(self._memory, True)
        self._held = []

    def hold(self, prompts: list[list[int]]) -> None:
        """Have the cells of each prompt but for its last token, and no others; computed unless the last call had these prompts."""
        if prompts != self._held:
            self.clear()
            for sequence, prompt in enumerate(prompts):
                self.feed(sequence, prompt[:-1], 0, want_logits=False)
            self._held = prompts
        for sequence, prompt in enumerate(prompts):
            llama.llama_memory_seq_rm(self._memory, sequence, len(prompt) - 1, -1)

    def feed(self, sequence: int, tokens: Sequence[int], start: int, *, want_logits: bool) -> None:
        """Decode `tokens` of one sequence from position `start`, in full batches."""
        for offset in range(0, len(tokens), N_BATCH):
            chunk = tokens[offset : offset + N_BATCH]
            for row, token in enumerate(chunk):
                self._put(row, token, start + offset + row, sequence, 0)
            self._batch.n_tokens = len(chunk)
            self._batch.logits[len(chunk) - 1] = int(want_logits and offset + len(chunk) == len(tokens))
            self._decode()

    def step(self, current: list[int], positions: list[int]) -> None:
        """One token for every sequence; `current` and `positions` are updated in place."""
        for row, token in enumerate(current):
            self._put(row, token, positions[row], row, 1)
        self._batch.n_tokens = len(current)
        self._decode()
        for row in range(len(current)):
            current[row] = self.sample(row)
            positions[row] += 1

    def sample(self, row: int) -> int:
        """The greedy token of a row, rendered to text as a server would."""
        token = int(llama.llama_sampler_sample(self._sampler, self._context, row))
        length = llama.llama_token_to_piece(self._vocab, token, self._piece, PIECE_BYTES, 0, False)
        self._piece.raw[:length].decode(errors="replace")
        return token

    def _put(self, row: int, token: int, position: int, sequence: int, logits: int) -> None:
        batch = self._batch
        batch.token[row], batch.pos[row], batch.logits[row] = token, position, logits
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence

    def _decode(self) -> None:
        started = time.perf_counter()
        status = llama.llama_decode(self._context, self._batch)
        self.decode_s += time.perf_counter() - started
        if status:
            raise RuntimeError(f"llama_decode returned {status}")


def _open(command: dict[str, Any]) -> tuple[Loop, dict[str, Any]]:
    started = time.perf_counter()
    loop = Loop(command["model"], command["n_ctx"], command["n_seq_max"], command["threads"])
    loop.feed(0, [1], 0, want_logits=True)
    load_s = time.perf_counter() - started
    return loop, {"load_s": load_s, "resident_bytes": psutil.Process().memory_info().rss}


def _tokenize(loop: Loop, command: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": loop.tokenize(command["text"])}


def _prefill(loop: Loop, command: dict[str, Any]) -> dict[str, Any]:
    loop.clear()
    started = time.perf_counter()
    loop.feed(0, command["prompt"], 0, want_logits=True)
    loop.sample(-1)
    return {"prefill_s": time.perf_counter() - started}


def _generate(loop: Loop, command: dict[str, Any]) -> dict[str, Any]:
    """The clock covers num_tokens steps: the last prompt token is decoded in the first of them."""
    prompts, num_tokens = command["prompts"], command["num_tokens"]
    loop.hold(prompts)
    current = [prompt[-1] for prompt in prompts]
    positions = [len(prompt) - 1 for prompt in prompts]
    loop.decode_s = 0.0
    started = time.perf_counter()
    for _ in range(num_tokens):
        loop.step(current, positions)
    wall_s = time.perf_counter() - started
    return {"wall_s": wall_s, "decode_s": loop.decode_s, "num_tokens": num_tokens * len(prompts)}


OPERATIONS: dict[str, Callable[[Loop, dict[str, Any]], dict[str, Any]]] = {
    "tokenize": _tokenize,
    "prefill": _prefill,
    "generate": _generate,
}


def main() -> None:
    """Answer commands until stdin ends, or the parent; the first one must be `open`."""
    die_with_parent()
    try:
        loop, answer = _open(json.loads(sys.stdin.readline()))
    except RuntimeError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(OPERATIONS[command["op"]](loop, command)), flush=True)


if __name__ == "__main__":
    main()
