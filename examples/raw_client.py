"""A client in 120 lines with nothing but `zmq` and `msgpack`: the wire is open to any language.

    python examples/raw_client.py [MODEL] [PROMPT]

docs/internals/messages.md describes every message. This client asks who is there, tokenises, and streams one answer with credit and
signs of life. What it leaves out, such as a host that restarts, the client library shows.
"""

import os
import secrets
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import zmq

VERSION = 1
WINDOW = 64
WAIT_MS = 3_000
PATIENCE = 10

Body = dict[str, Any]


def endpoint() -> str:
    """Where the host of this user listens."""
    if os.environ.get("ERLLAMA_ENDPOINT"):
        return os.environ["ERLLAMA_ENDPOINT"]
    private = os.environ.get("XDG_RUNTIME_DIR")
    default = Path(private) / "erllama" if private else Path(tempfile.gettempdir()) / f"erllama-{os.geteuid()}"
    return f"ipc://{os.environ.get('ERLLAMA_RUN') or default}/clients.sock"


class RawClient:
    """One DEALER socket."""

    def __init__(self, address: str) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(16))
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.connect(address)

    def send(self, kind: str, ref: str, model: str = "", **body: object) -> None:
        """One message: an envelope of six, and a map."""
        envelope = [VERSION, kind, ref, model, 0, b""]
        self.socket.send_multipart([msgpack.packb(envelope), msgpack.packb(body)])

    def receive(self, ref: str, wait_ms: int) -> tuple[str, Body] | None:
        """The next message of `ref`: its kind and body; None when none came in time."""
        while self.socket.poll(wait_ms):
            envelope, body = self.socket.recv_multipart()
            _, kind, found, *_ = msgpack.unpackb(envelope)
            if found == ref:
                return kind, msgpack.unpackb(body or b"\x80")
        return None

    def call(self, kind: str, model: str = "", **body: object) -> Body:
        """Ask and wait for the reply."""
        ref = f"{model or '@host'}/{secrets.token_hex(16)}"
        self.send(kind, ref, model, **body)
        answer = self.receive(ref, PATIENCE * WAIT_MS)
        if answer is None:
            raise SystemExit(f"no answer to {kind}; is a host running?")
        return result(*answer)

    def stream(self, model: str, text: str, max_tokens: int) -> Iterator[str | Body]:
        """Pieces of text of one answer, then the body of `done`."""
        ref = f"{model}/{secrets.token_hex(16)}"
        self.send("infer", ref, model, text=text, max_tokens=max_tokens, credit=WINDOW)
        index, silence = 0, 0
        while silence < PATIENCE:
            message = self.receive(ref, WAIT_MS)
            if message is None:
                silence += 1
                self.send("resume", ref, model, next_index=index)  # also a sign of life; what was lost comes again
                continue
            silence, (kind, body) = 0, message
            if kind == "tokens" and body["first_index"] == index:
                count = len(unpack(body.get("ids", b"")))
                index += count
                yield text_of(body)
                self.send("credit", ref, model, tokens=count)  # read: the worker may send as many more
            elif kind == "done" and body.get("generated", 0) > index:
                self.send("resume", ref, model, next_index=index)  # messages were lost before it
            elif kind in ("done", "error"):
                yield text_of(result(kind, body))  # what was held back until the end
                yield body
                return
        raise SystemExit("the model does not answer")


def result(kind: str, body: Body) -> Body:
    """The body, or the host's error as an exception."""
    if kind == "error":
        raise SystemExit(f"{body['code']}: {body['message']}")
    return body


def text_of(body: Body) -> str:
    """The text of a message, of all channels."""
    return "".join(part for _, part in body.get("parts", []))


def unpack(ids: bytes) -> list[int]:
    """Token ids travel as little-endian u32."""
    return list(struct.unpack(f"<{len(ids) // 4}I", ids))


def main(model: str = "tiny", prompt: str = "Once upon a time") -> None:
    """Who is there, what are the prompt's tokens, what is the answer."""
    client = RawClient(endpoint())
    hello = client.call("hello")
    print(f"host {hello['version']}, protocol {hello['protocol']}")
    print("tokens:", unpack(client.call("tokenize", model, text=prompt)["tokens"]))
    for item in client.stream(model, prompt, max_tokens=24):
        if isinstance(item, str):
            print(item, end="", flush=True)
        else:
            print(f"\n{item['finish_reason']}, {item.get('generated', 0)} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
