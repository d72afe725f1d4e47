"""A small text service on asyncio: one line in, an answer streamed back, many connections at a time.

    python -m examples.asyncio_service tiny            # then, elsewhere: nc localhost 7711

A connection that goes away cancels its request. A model that dies in the middle of an answer is not noticed here: the stream
goes on when it is back.
"""

import asyncio
import sys
from contextlib import suppress

from erllama_host import AsyncClient, ErllamaError
from erllama_host.client import AsyncModel

MAX_TOKENS = 32


async def serve_connection(model: AsyncModel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer line after line."""
    with suppress(ConnectionError):
        while line := (await reader.readline()).decode(errors="replace").strip():
            try:
                async with model.infer(line, max_tokens=MAX_TOKENS, deadline_s=60) as stream:
                    async for piece in stream:
                        writer.write(piece.text.encode())
                        await writer.drain()  # a slow connection slows its own stream, and nobody else's
            except ErllamaError as error:
                writer.write(f"{error.code}: {error.message}".encode())
            writer.write(b"\n")
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def serve(model_id: str, port: int, ready: asyncio.Event | None = None) -> None:
    """Serve until cancelled. `ready` is set when connections are accepted."""
    async with AsyncClient() as host:
        model = host.model(model_id)
        server = await asyncio.start_server(lambda r, w: serve_connection(model, r, w), "127.0.0.1", port)
        async with server:
            if ready is not None:
                ready.set()
            await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else "tiny", 7711))
