"""A conversation in a terminal: streaming, Ctrl-C stops an answer, an empty line or the end of input leaves.

    erllama up -d && erllama load SmolLM2.gguf --id tiny && python -m examples.chat_loop tiny

Each turn sends the whole conversation; the host finds what it has computed before and reads it from its cache.
"""

import sys

from erllama_host import Client
from erllama_host.client import Model, Piece, Stream

SYSTEM = "You are a helpful assistant. Answer in one or two sentences."
MAX_TOKENS = 64


def answer(model: Model, messages: list[dict[str, str]]) -> str:
    """Stream one answer to the terminal and return its text."""
    with model.chat_stream(messages, system=SYSTEM, max_tokens=MAX_TOKENS) as stream:
        parts = []
        while (piece := next_piece(stream)) is not None:
            if piece.channel == "text":
                print(piece.text, end="", flush=True)
                parts.append(piece.text)
    stats = stream.stats
    assert stats is not None
    print(f"\n  [{stats.cache.kind}: {stats.cache.read_tokens} of {stats.prompt_tokens} tokens from the cache]")
    return "".join(parts)


def next_piece(stream: Stream) -> Piece | None:
    """The next piece, None at the end; Ctrl-C cancels the answer, which then ends by itself."""
    while True:
        try:
            return next(stream, None)
        except KeyboardInterrupt:
            stream.cancel()


def main(model_id: str) -> None:
    """Talk until there is no more to say."""
    messages: list[dict[str, str]] = []
    with Client() as host:
        model = host.model(model_id)
        while text := read("> "):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": answer(model, messages)})


def read(prompt: str) -> str:
    """A line of the user; empty at the end of input."""
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        return ""


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
