"""A scripted engine, a controller's side of the socket, and a service between them, in one process; and real worker processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import zmq

from erllama_host.config.model import ModelConfig, ModelSpec, StubConfig
from erllama_host.ids import new_incarnation, new_ref, new_routing_id
from erllama_host.observability import Log
from erllama_host.protocol.envelope import PROTOCOL_VERSION, Envelope, decode_envelope, encode_body, encode_envelope
from erllama_host.protocol.inference import CacheReport, Part, Stats
from erllama_host.protocol.kinds import EVENT_KINDS, LINK_KINDS, MODEL_KINDS
from erllama_host.transport.sockets import dealer, router
from workers.backend.values import ContextLimits, Footprint
from workers.commands import Answer, EngineCall, EngineSnapshot, Finished, Generated, Park, Submit
from workers.dispatch import Dispatcher
from workers.inbox import Inbox
from workers.model import Loaded, LoadedModel
from workers.outbox import Outbox
from workers.presence import Presence
from workers.self_info import SelfInfo
from workers.service import Service
from workers.text import Markers

MODEL_ID = "tiny"
WAIT_S = 30.0


def until(condition, what="condition", timeout_s=WAIT_S):
    """Wait for a condition; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.005)
    return value


class FakeEngine:
    """An engine that does what the test says: commands are collected, reports are given."""

    def __init__(self, wake):
        self.commands = []
        self.snapshot = EngineSnapshot()
        self.work = None
        self._reports = deque()
        self._wake = wake
        self.answers = {}

    def post(self, command):
        self.commands.append(command)
        if isinstance(command, EngineCall | Park):
            name = command.name if isinstance(command, EngineCall) else "park"
            if name in self.answers:
                self.report(Answer(command.call_id, self.answers[name]))

    def reports(self):
        found = []
        while self._reports:
            found.append(self._reports.popleft())
        return found

    def report(self, *reports):
        self._reports += reports
        self._wake()

    def submitted(self, ref):
        """The Submit of `ref`, once it has come."""
        return until(lambda: next((c for c in self.commands if isinstance(c, Submit) and c.ref == ref), None), "Submit")

    def generate(self, ref, first, text):
        ids = tuple(text.encode())
        self.report(Generated(ref, first, ids, (Part("text", text),)))

    def finish(self, ref, generated=(), reason="stop", cancel_reason=None, parts=()):
        self.report(Finished(ref, reason, tuple(generated), parts, None, 0, CacheReport(), Stats(), cancel_reason))

    def has(self, kind, **fields):
        """The first command of a type with these fields."""
        for command in self.commands:
            if isinstance(command, kind) and all(getattr(command, name) == value for name, value in fields.items()):
                return command
        return None


def text_of(tokens, done):
    """The text of an answer, from its events."""
    return "".join(part.text for event in (*tokens, done) for part in event.parts)


class FakeController:
    """The controller's ROUTER: speaks to workers as itself and for clients."""

    def __init__(self, endpoint):
        self._context = zmq.Context()
        self.socket = router(self._context)
        self.socket.bind(endpoint)
        self.worker = None
        self.inbox = []

    def send(self, kind, body=None, *, ref="", peer=b"", deadline_ms=0, raw=None, version=PROTOCOL_VERSION):
        envelope = Envelope(version, kind, ref, MODEL_ID, deadline_ms, peer)
        self.socket.send_multipart([self.worker, encode_envelope(envelope), encode_body(body) if raw is None else raw])

    def receive(self, timeout_s=WAIT_S):
        """The next message as (envelope, decoded body)."""
        assert self.socket.poll(timeout_s * 1e3), "no message came"
        self.worker, head, frame = self.socket.recv_multipart()
        envelope = decode_envelope(head)
        body_type = EVENT_KINDS.get(envelope.kind) or LINK_KINDS.get(envelope.kind)
        body = (
            msgspec.msgpack.decode(frame or b"\x80", type=body_type)
            if body_type
            else msgspec.msgpack.decode(frame or b"\x80")
        )
        return envelope, body

    def expect(self, *kinds, ref=None, timeout_s=WAIT_S, where=lambda body: True):
        """The next message of these kinds (and of this ref); others are kept in `inbox`."""
        for index, (envelope, body) in enumerate(self.inbox):
            if envelope.kind in kinds and ref in (None, envelope.ref) and where(body):
                del self.inbox[index]
                return body
        deadline = time.monotonic() + timeout_s
        while True:
            envelope, body = self.receive(max(0.001, deadline - time.monotonic()))
            if envelope.kind in kinds and ref in (None, envelope.ref) and where(body):
                return body
            self.inbox.append((envelope, body))

    def call(self, kind, body=None, *, peer=b"\x01client", **options):
        """Send a call for a client and return its reply, typed; an error is returned as ErrorBody."""
        ref = new_ref(MODEL_ID)
        self.send(kind, body, ref=ref, peer=peer, **options)
        answer = self.expect("reply", "error", ref=ref)
        if isinstance(answer, dict):
            return msgspec.convert(answer, MODEL_KINDS[kind].answer)
        return answer

    def stream(self, ref):
        """Everything of a stream up to its end: (accepted, list of Tokens, end)."""
        accepted, tokens = None, []
        while True:
            body = self.expect("accepted", "tokens", "done", "error", ref=ref)
            match type(body).__name__:
                case "Accepted":
                    accepted = body
                case "Tokens":
                    tokens.append(body)
                case _:
                    return accepted, tokens, body

    def close(self):
        self.socket.close(linger=0)
        self._context.term()


def loaded_model(engine, backend, n_ctx=512):
    """A stub as the service sees it, with `engine` behind it."""
    return LoadedModel(
        engine=engine,
        vocabulary=backend.vocabulary,
        check_sampling=backend.check_sampling,
        facts=backend.info,
        limits=ContextLimits(n_ctx, 2 * n_ctx, 2, 4, 64, 32, 64),
        markers=Markers(),
        footprint=Footprint(),
        fingerprint="f" * 64,
        tier="ram",
        kv_mode="segments",
        kv_reason="ok",
        load_ms=1.0,
    )


class RunningService:
    """A service loop in a thread of this process, with a FakeEngine behind it and a FakeController before it."""

    def __init__(self, *, load=True, make_chat=None, n_ctx=512, **config):
        self.directory = Path(tempfile.mkdtemp(prefix="es"))
        endpoint = f"ipc://{self.directory}/w"
        self.controller = FakeController(endpoint)
        self.spec = ModelSpec(model_id=MODEL_ID, load_id="load1", config=ModelConfig(backend="stub", **config))
        self.inbox = Inbox()
        self.engine = FakeEngine(self.inbox.wake)
        self._context = zmq.Context()
        self._socket = dealer(self._context, new_routing_id())
        log = Log("worker", "error")
        incarnation = new_incarnation(time.time_ns())
        outbox, info = Outbox(self._socket, MODEL_ID, log), SelfInfo(self.spec, incarnation)
        presence = Presence(self.spec, incarnation, info, outbox, os.getpid())
        self.dispatcher = Dispatcher(
            self.spec, incarnation, outbox, info, presence, log, self.inbox.put, make_chat or (lambda model: NoChat())
        )
        self.service = Service(self._socket, self.inbox, self.dispatcher)
        self.exit_code = None
        self.n_ctx = n_ctx
        self._thread = threading.Thread(target=self._run, args=(endpoint,), daemon=True)
        self._thread.start()
        self.controller.expect("w.hello")
        if load:
            self.load()

    def _run(self, endpoint):
        self.exit_code = self.service.run(endpoint)

    def load(self, *, wait=True):
        from tests.support.backends import open_stub_backend

        self.inbox.put(Loaded(loaded_model(self.engine, open_stub_backend(), self.n_ctx)))
        if wait:
            self.controller.expect("w.ready")

    def terminate(self):
        self.service.on_signal(signal.SIGTERM, None)

    def join(self):
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.exit_code

    def close(self):
        self.terminate()
        self.terminate()
        self.join()
        self.service.close()
        self._socket.close(linger=0)
        self._context.term()
        self.inbox.close()
        self.controller.close()
        shutil.rmtree(self.directory)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class NoChat:
    """A model without conversations."""

    def remember(self, ids):
        pass


class WorkerProcess:
    """`python -m workers` in directories of its own, with a FakeController."""

    def __init__(self, config=None, *, load_id="load1", stub=None, environment=None, spec_text=None):
        self.directory = Path(tempfile.mkdtemp(prefix="ew"))
        self.run_dir, self.home = self.directory / "run", self.directory / "home"
        for path in (self.run_dir, self.run_dir / "models", self.home):
            path.mkdir(mode=0o700)
        options = config or {"backend": "stub", "n_ctx": 512, "stub": StubConfig(**(stub or {}))}
        self.spec = ModelSpec(model_id=MODEL_ID, load_id=load_id, config=ModelConfig(**options), home=str(self.home))
        text = spec_text if spec_text is not None else msgspec.json.encode(self.spec)
        (self.run_dir / "models" / f"{MODEL_ID}.json").write_bytes(text)
        self.failed_note.parent.mkdir()
        self.endpoint = f"ipc://{self.run_dir}/workers.sock"
        self.environment = environment or {}
        self.controller = FakeController(self.endpoint)
        self.process = None

    @property
    def failed_note(self):
        return self.run_dir / "failed" / f"{MODEL_ID}.json"

    def start(self, ready=True):
        environment = {
            **os.environ,
            "ERLLAMA_RUN": str(self.run_dir),
            "ERLLAMA_HOME": str(self.home),
            **self.environment,
        }
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers", MODEL_ID], env=environment, stderr=log, stdout=log
            )
        if ready:
            self.controller.expect("w.ready")
        return self

    def log_text(self):
        return (self.directory / "log").read_text()

    def wait(self):
        return self.process.wait(WAIT_S)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.wait()

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.controller.close()
        shutil.rmtree(self.directory)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.close()
