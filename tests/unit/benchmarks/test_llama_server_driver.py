"""The driver of the peer, against a server that answers as llama-server does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.http_peer import answers
from benchmarks.llama_server import LlamaServer


class _Handler(BaseHTTPRequestHandler):
    """/completion streams one event per token, the last one empty; a prompt of one token is refused."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        self.send_response(400 if len(body["prompt"]) == 1 else 200)
        self.end_headers()
        count = body["n_predict"]
        for number in range(count):
            self._event({"content": "x", "tokens": [number], "tokens_predicted": number + 1, "stop": False})
        self._event({"content": "", "tokens": [], "tokens_predicted": count, "stop": True})

    def _event(self, data: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.bodies = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_stream_is_timed_event_by_event(server: ThreadingHTTPServer) -> None:
    peer = LlamaServer(server.server_port)
    timing = peer.stream([1, 2, 3], 5)
    assert timing.num_tokens == 5
    assert len(timing.arrivals_ms) == 5
    assert 0 < timing.ttft_ms <= timing.arrivals_ms[-1] <= timing.total_ms
    body = server.bodies[0]  # type: ignore[attr-defined]
    assert body["prompt"] == [1, 2, 3]
    assert body["ignore_eos"]
    assert body["temperature"] == 0


def test_a_refusal_is_an_error(server: ThreadingHTTPServer) -> None:
    with pytest.raises(RuntimeError, match="answered 400"):
        LlamaServer(server.server_port).stream([1], 5)


def test_health(server: ThreadingHTTPServer) -> None:
    assert answers(server.server_port, "/health")
    assert not answers(server.server_port, "/elsewhere")


def test_nobody_there_is_not_healthy() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as closed:
        port = closed.server_port
    assert not answers(port, "/health")
