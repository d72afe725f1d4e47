"""The in-memory twin of `ZmqLink`: the test is the other end."""

from collections.abc import Callable

from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.transport.client_link import LinkPhase
from erllama_host.transport.sockets import Frames


class MemoryLink:
    """`sent` holds what the client sent; `become` and `receive` are what a host would do."""

    def __init__(self) -> None:
        self.sent: list[tuple[Envelope, bytes]] = []
        self.closed = False
        self.is_full = False
        self._phase = LinkPhase.ABSENT
        self._on_message: Callable[[list[bytes]], None] | None = None
        self._on_phase: Callable[[LinkPhase], None] | None = None

    def open(self, on_message: Callable[[list[bytes]], None], on_phase: Callable[[LinkPhase], None]) -> None:
        self._on_message, self._on_phase = on_message, on_phase

    def send(self, frames: Frames) -> bool:
        if self.closed or self.is_full or self._phase is not LinkPhase.READY:
            return False
        self.sent.append((decode_envelope(frames[0]), frames[1]))
        return True

    def close(self) -> None:
        self.closed = True

    # ---- the other end -------------------------------------------------------------------------------------------

    def become(self, phase: LinkPhase) -> None:
        self._phase = phase
        assert self._on_phase is not None
        self._on_phase(phase)

    def receive(self, kind: str, ref: str, body: object, model: str = "") -> None:
        assert self._on_message is not None
        self._on_message([encode_envelope(Envelope(PROTOCOL_VERSION, kind, ref, model)), encode_body(body)])

    def receive_frames(self, frames: list[bytes]) -> None:
        assert self._on_message is not None
        self._on_message(frames)

    def kinds(self) -> list[str]:
        return [envelope.kind for envelope, _ in self.sent]
