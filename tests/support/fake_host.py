"""A host in a thread that does what a test says: a ROUTER that answers clients, with a `FakeWorker` behind it.

    with FakeHost() as host, Client(host.endpoint) as client: ...

`answers[kind]` replaces the answer to a kind: a body, an ErllamaError, or a function of the request that returns either (or
None: no answer). What is not replaced has a plausible default.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from erllama_host.errors import ErllamaError, ModelLoading
from erllama_host.protocol import calls as c
from erllama_host.protocol.envelope import (
    PROTOCOL_VERSION,
    Envelope,
    decode_body,
    decode_envelope,
    encode_body,
    encode_envelope,
)
from erllama_host.protocol.inference import ErrorBody, Moved, pack_tokens
from erllama_host.protocol.kinds import HOST_KINDS, MODEL_KINDS
from erllama_host.transport.sockets import router
from tests.support.fake_worker import Event, FakeWorker


@dataclass
class Request:
    """A message that came."""

    peer: bytes
    envelope: Envelope
    body: Any

    @property
    def kind(self) -> str:
        return self.envelope.kind


DEFAULT_ANSWERS: dict[str, Any] = {
    "hello": c.HostHello(version="0", protocol=PROTOCOL_VERSION, instance="0" * 12, pid=1),
    "load_model": lambda r: c.ModelInfo(model_id=r.body.model_id or "erllama_model_1", status="idle", path=r.body.path),
    "unload": c.Ok(),
    "restart": lambda r: c.ModelInfo(model_id=r.body.model_id, status="idle", restarts=1),
    "list_models": c.ModelList(models=[c.ModelInfo(model_id="tiny", status="idle")]),
    "model_info": lambda r: c.ModelInfo(
        model_id=r.body.model_id, status="idle", pending=3, queue_depth=2, last_cache_hit="exact"
    ),
    "models": c.WorkerPids(pids={"tiny": [4711]}),
    "counters": c.Counters(counters={"requests": 1.0}),
    "events": c.EventList(events=[c.Event(seq=1, at=0.0, name="loaded")], next=1),
    "host_status": lambda r: c.HostStatus(hello=DEFAULT_ANSWERS["hello"]),
    "drain": c.Ok(),
    "cache": lambda r: c.CacheAnswer(result={"op": r.body.op, **r.body.arguments}),
    "status": c.ModelStatus(status="idle"),
    "tokenize": lambda r: c.TokenList(tokens=pack_tokens(list(r.body.text.encode()))),
    "detokenize": lambda r: c.Text(text=bytes(r.body.tokens[::4]).decode()),
    "apply_chat_template": lambda r: c.Rendered(tokens=pack_tokens([len(r.body.chat.messages)])),
    "embed": lambda r: c.Vectors(vectors=[b"\x00\x00\x80\x3f" * 2] * len(r.body.texts or r.body.tokens), n_embd=2),
    "load_adapter": lambda r: c.AdapterInfo(handle="a1", path=r.body.path, scale=r.body.scale),
    "unload_adapter": c.Ok(),
    "set_adapter_scale": c.Ok(),
    "list_adapters": c.AdapterList(adapters=[c.AdapterInfo(handle="a1")]),
    "evict": c.Evicted(freed_bytes=10, deferred=False),
    "shutdown": c.Saved(saved_tokens=5),
    "cached_prefix_len": lambda r: c.Length(length=len(r.body.tokens) // 4),
    "end_session": c.Ok(),
    "fork": lambda r: c.SessionName(session_id=r.body.new_session_id or "copy"),
    "verify": c.Verified(accepted=2, next_token=9),
    "draft": lambda r: c.TokenList(tokens=r.body.tokens[: 4 * r.body.n]),
}


class FakeHost:
    """Its thread owns the socket and the worker; tests change things through methods that post to it."""

    def __init__(self, endpoint: str | None = None, pace_s: float = 0.0, step: int = 3) -> None:
        """`step`: tokens per event. `pace_s`: time between events of a stream."""
        self._directory = None if endpoint else Path(tempfile.mkdtemp(prefix="fh", dir="/tmp"))
        self.endpoint = endpoint or f"ipc://{self._directory}/c.sock"
        self.answers: dict[str, Any] = {}
        self.requests: list[Request] = []
        self.worker: FakeWorker | None = FakeWorker()
        self.paused = False
        self._pace_s, self._step = pace_s, step
        self._peers: dict[str, bytes] = {}
        self._todo: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    # ---- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> "FakeHost":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        """Listen. Also again, after `stop`: a host that comes back."""
        self._stopping = False
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="fake-host")
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Vanish, as a controller does that was killed: the socket closes, what was under way is lost."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._thread = None

    # ---- what tests do -------------------------------------------------------------------------------------------

    def post(self, action: Callable[[], None]) -> None:
        """Do something on the host's thread; returns when it is done."""
        done = threading.Event()
        self._todo.put(lambda: (action(), done.set()))
        assert done.wait(10)

    def send(self, request: Request, kind: str, body: Any) -> None:
        """Send something to whoever made `request`, under its ref."""
        self.post(lambda: self._send(request.peer, kind, request.envelope.ref, request.envelope.model, body))

    def kill_worker(self, hint: bool = True) -> None:
        """The worker dies; until `respawn` the host answers ModelLoading."""
        self.post(lambda: self._change_worker(None, hint))

    def respawn(self, hint: bool = True) -> None:
        """A new incarnation serves."""
        self.post(lambda: self._change_worker(FakeWorker(self._life + 1), hint))

    def of_kind(self, kind: str) -> list[Request]:
        return [r for r in list(self.requests) if r.kind == kind]

    def wait_for(self, kind: str, count: int = 1, timeout_s: float = 20.0) -> list[Request]:
        """Until `count` messages of a kind have come; what came."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.of_kind(kind)) >= count, timeout_s), (
                f"waited for {count} × {kind}, got {[r.kind for r in self.requests]}"
            )
        return self.of_kind(kind)

    # ---- the thread ----------------------------------------------------------------------------------------------

    _life = 1

    def _run(self, ready: threading.Event) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = router(context)
        self._socket.setsockopt(zmq.LINGER, 100)
        self._socket.bind(self.endpoint)
        ready.set()
        next_step = 0.0
        while not self._stopping:
            if self._socket.poll(2):
                self._take(self._socket.recv_multipart())
            self._do_posted()
            if self.worker is not None and not self.paused and time.monotonic() >= next_step:
                next_step = time.monotonic() + self._pace_s
                for ref in list(self.worker.runs):
                    self._emit(self.worker.step(ref, self._step))
        self._socket.close()
        context.term()

    def _do_posted(self) -> None:
        try:
            while True:
                self._todo.get_nowait()()
        except Empty:
            return

    def _take(self, frames: list[bytes]) -> None:
        peer, envelope = frames[0], decode_envelope(frames[1])
        kinds = MODEL_KINDS if envelope.model else HOST_KINDS
        request = Request(peer, envelope, decode_body(envelope.kind, frames[2], kinds[envelope.kind].body))
        self._peers[envelope.ref] = peer
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        self._answer(request)

    def _answer(self, request: Request) -> None:
        kind = request.kind
        if kind in self.answers or kind in DEFAULT_ANSWERS:
            answer = self.answers.get(kind, DEFAULT_ANSWERS.get(kind))
            answer = answer(request) if callable(answer) else answer
            if answer is not None:
                self._reply(request, answer)
        elif self.worker is not None:
            self._emit(self.worker.handle(request.envelope.ref, kind, request.body))
        elif kind in ("infer", "resume"):
            self._reply(request, ModelLoading("the model is restarting", retry_after_s=0.2))

    def _reply(self, request: Request, answer: Any) -> None:
        kind = "reply"
        if isinstance(answer, ErllamaError):
            kind = "error"
            answer = ErrorBody(
                code=answer.code, message=answer.message, retryable=answer.retryable, details=answer.details
            )
        self._send(request.peer, kind, request.envelope.ref, request.envelope.model, answer)

    def _emit(self, events: list[Event]) -> None:
        for ref, kind, body in events:
            self._send(self._peers[ref], kind, ref, "tiny", body)

    def _send(self, peer: bytes, kind: str, ref: str, model: str, body: Any) -> None:
        envelope = Envelope(PROTOCOL_VERSION, kind, ref, model)
        try:
            self._socket.send_multipart([peer, encode_envelope(envelope), encode_body(body)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            assert error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN)

    def _change_worker(self, worker: FakeWorker | None, hint: bool) -> None:
        self.worker = worker
        self._life = worker.life if worker is not None else self._life
        if hint:
            for peer in set(self._peers.values()):
                self._send(peer, "moved", "", "tiny", Moved(incarnation=worker.incarnation if worker else ""))
