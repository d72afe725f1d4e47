"""A client of one file: speaks the protocol over a DEALER, blocking. For tests of the host that must not depend on the library."""

import time

import msgspec
import zmq

from erllama_host.errors import from_wire
from erllama_host.ids import new_ref, new_routing_id
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_envelope, encode_envelope
from erllama_host.transport.sockets import dealer


class WireClient:
    """Calls and streams. `seen` holds messages that no call has waited for."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self.socket = dealer(self._context, new_routing_id())
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.seen: list[tuple[Envelope, dict]] = []

    def __enter__(self) -> "WireClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def send(self, kind: str, body: dict | None = None, model: str = "", ref: str | None = None) -> str:
        """Send one request; its ref."""
        ref = ref or (new_ref(model) if model else new_ref())
        data = msgspec.msgpack.encode(body) if body is not None else b""
        self.socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref, model)), data])
        return ref

    def receive(self, timeout_s: float = 30.0) -> tuple[Envelope, dict]:
        """The next message."""
        if not self.socket.poll(max(0, round(timeout_s * 1000))):
            raise TimeoutError(f"nothing came within {timeout_s:g} s")
        frames = self.socket.recv_multipart()
        return decode_envelope(frames[0]), msgspec.msgpack.decode(frames[1]) if frames[1] else {}

    def answer(self, ref: str, timeout_s: float = 60.0) -> dict:
        """The `reply` to `ref`; raises the error that came instead."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            envelope, body = self.receive(give_up_at - time.monotonic())
            if envelope.ref == ref and envelope.kind == "reply":
                return body
            if envelope.ref == ref and envelope.kind == "error":
                raise from_wire(body["code"], body["message"], body.get("details"))
            self.seen.append((envelope, body))

    def call(self, kind: str, body: dict | None = None, model: str = "", timeout_s: float = 60.0) -> dict:
        """Send and wait for the reply."""
        return self.answer(self.send(kind, body, model), timeout_s)

    def load_stub(self, model_id: str, **stub: object) -> dict:
        """Load a stub model; options of the load go by `options`."""
        options = stub.pop("options", {})
        return self.call("load_model", {"model_id": model_id, "config": {"backend": "stub", "stub": stub, **options}})

    def infer(self, model: str, max_tokens: int = 8, text: str = "hello") -> list[int]:
        """Run one request to its end, unless an error ends it; the tokens."""
        ref = self.send("infer", {"text": text, "max_tokens": max_tokens, "ignore_eos": True}, model)
        found: list[int] = []
        while True:
            envelope, body = self.receive()
            if envelope.ref != ref:
                continue
            if envelope.kind == "tokens":
                ids = memoryview(body.get("ids", b"")).cast("I").tolist()
                found[body["first_index"] :] = ids
            elif envelope.kind == "done":
                return found
            elif envelope.kind == "error":
                raise from_wire(body["code"], body["message"], body.get("details"))
