"""The engine as a thread: loading, hand-over, crash, stop."""

import io
import queue
import threading

import pytest

from erllama_host.config.model import ModelConfig, ModelSpec, StubConfig
from erllama_host.errors import ConfigError, ModelLoadFailed
from erllama_host.observability import Log
from erllama_host.protocol.inference import SamplingParams
from tests.support.engines import make_text
from tests.support.memory_store import MemoryStore
from workers.backend.open import open_backend
from workers.commands import Finished, Stop, Submit
from workers.engine import Engine, EngineHooks, Ready

WAIT_S = 60.0


class Running:
    """An engine in its thread; what it says arrives in one queue."""

    def __init__(self, *, opened=open_backend, store=None, home="", **config):
        self.said = queue.Queue()
        self.log = io.StringIO()
        hooks = EngineHooks(
            wake_service=lambda: self.said.put("wake"),
            on_progress=lambda fraction, phase: None,
            on_ready=self.said.put,
            on_load_failed=self.said.put,
            on_crash=self.said.put,
            on_stopped=lambda: self.said.put("stopped"),
        )
        options = {"backend": "stub", "n_ctx": 256, "n_cells": 512, **config}
        self.engine = Engine(
            ModelSpec(model_id="m", load_id="1", config=ModelConfig(**options), home=str(home)),
            open_backend=opened,
            make_store=store or (lambda namespace, wake: None),
            make_text=make_text,
            hooks=hooks,
            log=Log("worker", stream=self.log),
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            self.engine.run()
        except RuntimeError:
            pass  # on_crash has it

    def next(self):
        return self.said.get(timeout=WAIT_S)

    def report(self, kind):
        """The next report of that kind."""
        while True:
            found = [one for one in self.engine.reports() if isinstance(one, kind)]
            if found:
                return found[0]
            assert self.next() == "wake"

    def stop(self):
        self.engine.post(Stop())
        self.engine.abort()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()


def request(ref="r", **fields):
    values = {
        "prompt": list(b"hello"),
        "params": SamplingParams(),
        "seed": 1,
        "max_tokens": 5,
        "arrived_at": 0.0,
        **fields,
    }
    return Submit(ref=ref, **values)


def test_an_engine_loads_serves_sleeps_and_stops():
    store = MemoryStore()
    running = Running(store=store.make)
    ready = running.next()
    assert isinstance(ready, Ready) and ready.kv_mode.value == "segments" and len(ready.fingerprint) == 64
    assert store.namespace == ready.namespace
    running.engine.post(request("one"))
    first = running.report(Finished)
    running.engine.post(request("two"))
    assert running.report(Finished).generated == first.generated
    closed = []
    ready.backend.close = lambda: closed.append("backend")
    running.stop()
    assert store.closed and "stopped" in list(running.said.queue)
    assert not closed, "threads of the service may be inside its vocabulary"


def test_a_load_that_fails_is_told_and_ends_the_thread():
    running = Running(stub=StubConfig(fail_load="no such model"))
    assert isinstance(error := running.next(), ModelLoadFailed) and "no such model" in error.message
    running.thread.join(WAIT_S)
    assert not running.thread.is_alive()


def test_a_bad_fingerprint_is_a_config_error():
    running = Running(backend="llama", path="/nowhere.gguf", fingerprint_mode="fast_unsafe", fingerprint="abc")
    assert isinstance(error := running.next(), ConfigError) and error.details["key"] == "fingerprint"


def test_what_nobody_expected_goes_to_on_crash():
    def broken(config, on_progress):
        backend = open_backend(config, on_progress)

        def decode(rows):
            raise RuntimeError("the library fell over")

        backend.self_check, backend.decode = backend.self_check, backend.decode
        check = backend.self_check

        def self_check():
            verdict = check()
            backend.decode = decode
            return verdict

        backend.self_check = self_check
        return backend

    running = Running(opened=broken)
    assert isinstance(running.next(), Ready)
    running.engine.post(request())
    while (said := running.next()) == "wake":
        pass
    assert isinstance(said, RuntimeError) and "fell over" in str(said)


def test_a_respawn_remembers_the_self_check(tmp_path):
    calls = []

    def counting(config, on_progress):
        backend = open_backend(config, on_progress)
        check = backend.self_check
        backend.self_check = lambda: (calls.append(1), check())[1]
        return backend

    reasons = []
    for _ in range(2):
        running = Running(opened=counting, home=tmp_path)
        ready = running.next()
        reasons.append(ready.kv_reason)
        assert ready.kv_mode.value == "segments"
        running.stop()
    assert calls == [1] and "earlier" in reasons[1] and "earlier" not in reasons[0]


@pytest.mark.parametrize("junk", ["", "[]", "{", '{"a": 1}'])
def test_junk_in_the_memories_costs_a_check_and_nothing_else(tmp_path, junk):
    (tmp_path / "self-checks.json").write_text(junk)
    running = Running(home=tmp_path)
    assert running.next().kv_reason == "restored logits are bit-identical"
    running.stop()
