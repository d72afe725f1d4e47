"""A real worker process on the stub, spoken to by a controller's socket."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from erllama_host.ids import new_ref
from erllama_host.process import ExitCode, exists
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import (
    Cancel,
    ChatRequest,
    Credit,
    Infer,
    Resume,
    ResumePoint,
    pack_tokens,
    unpack_tokens,
)
from erllama_host.protocol.link import Park as ParkBody
from tests.support.workers import MODEL_ID, FakeController, WorkerProcess, text_of, until

pytestmark = pytest.mark.process

CLIENT = b"\x01client"


def infer(worker, ref=None, **request):
    ref = ref or new_ref(MODEL_ID)
    worker.controller.send("infer", Infer(**request), ref=ref, peer=CLIENT)
    return ref


def ids_of(tokens):
    return [token for event in tokens for token in unpack_tokens(event.ids)]


@pytest.fixture(scope="module")
def worker():
    with WorkerProcess() as process:
        yield process


def test_it_answers_a_request(worker):
    accepted, tokens, done = worker.controller.stream(infer(worker, text="hello", max_tokens=20))
    assert unpack_tokens(accepted.prompt) == list(b"hello")
    assert len(ids_of(tokens)) == 20 and len(text_of(tokens, done)) == 20
    assert (done.finish_reason, done.generated, done.stats.prompt_tokens) == ("length", 20, 5)


def test_several_requests_at_a_time_get_each_its_own_answer(worker):
    alone = [text_of(*worker.controller.stream(infer(worker, text=f"prompt {n}", max_tokens=30))[1:]) for n in range(6)]
    refs = [infer(worker, text=f"prompt {n}", max_tokens=30) for n in range(6)]
    assert [text_of(*worker.controller.stream(ref)[1:]) for ref in refs] == alone


def test_a_stop_string_ends_an_answer_and_is_not_shown(worker):
    whole = text_of(*worker.controller.stream(infer(worker, text="hello", max_tokens=40))[1:])
    stop = whole[10:13]
    _, tokens, done = worker.controller.stream(infer(worker, text="hello", max_tokens=40, stop=[stop]))
    assert text_of(tokens, done) == whole[: whole.index(stop)] and done.finish_reason == "stop_string"


def test_every_call_is_answered(worker):
    call = worker.controller.call
    assert call("status").status in ("idle", "generating", "prefilling")
    assert unpack_tokens(call("tokenize", c.Tokenize(text="ab")).tokens) == list(b"ab")
    vectors = call("embed", c.Embed(texts=["ab", "cd"]))
    assert len(vectors.vectors) == 2 and len(vectors.vectors[0]) == 4 * vectors.n_embd
    assert call("cached_prefix_len", c.CachedPrefix(tokens=pack_tokens(list(b"zzz")))).length == 0
    assert call("end_session", c.Session(session_id="none")) == c.Ok()
    assert call("list_adapters").adapters == []
    assert call("load_adapter", c.LoadAdapter(path="/nowhere")).code == "InvalidRequest"
    verified = call("verify", c.Verify(tokens=pack_tokens(list(b"hello")), draft=pack_tokens([1, 2])))
    assert verified.accepted == 0 and verified.next_token is not None
    assert call("shutdown", c.Save()).saved_tokens == 0  # no cache daemon here
    assert call("evict", c.Evict()).deferred is False
    rendered = call(
        "apply_chat_template", c.ApplyTemplate(chat=ChatRequest(messages=[{"role": "user", "content": "hi"}]))
    )
    assert rendered.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_an_adapter_is_told_in_the_info_and_pinned_to_requests(worker, tmp_path):
    path = tmp_path / "lora.gguf"
    path.write_bytes(b"GGUF1")
    call = worker.controller.call
    plain = text_of(*worker.controller.stream(infer(worker, text="hello", max_tokens=20))[1:])
    handle = call("load_adapter", c.LoadAdapter(path=str(path))).handle
    ref = infer(worker, text="hello", max_tokens=20)
    uses = worker.controller.expect("accepted", ref=ref, where=lambda body: body.adapters).adapters
    assert [use.handle for use in uses] == [handle]
    assert text_of(*worker.controller.stream(ref)[1:]) != plain
    until(lambda: [a.handle for a in call("worker_info").adapters] == [handle], "adapters in worker_info")
    call("unload_adapter", c.UnloadAdapter(handle=handle))
    assert text_of(*worker.controller.stream(infer(worker, text="hello", max_tokens=20))[1:]) == plain


def test_a_resumed_answer_goes_on_as_it_would_have(worker):
    accepted, tokens, done = worker.controller.stream(infer(worker, text="tell me", max_tokens=40))
    ids, text = ids_of(tokens), text_of(tokens, done)
    point = ResumePoint(delivered=pack_tokens(ids[:15]), seed=accepted.seed)
    ref = infer(worker, tokens=accepted.prompt, max_tokens=40, attempt=1, resume=point)
    again, rest, done = worker.controller.stream(ref)
    assert again.attempt == 1 and rest[0].first_index == 15
    assert (ids_of(rest), text_of(rest, done)) == (ids[15:], text[15:])
    assert done.generated == 40


def test_a_client_that_does_not_read_holds_its_own_stream_only():
    with WorkerProcess({"backend": "stub", "n_ctx": 8192, "n_cells": 16384}) as worker:
        slow = infer(worker, text="slow", max_tokens=4000, credit=8)
        first = worker.controller.expect("tokens", ref=slow)
        assert worker.controller.stream(infer(worker, text="other", max_tokens=20))[2].generated == 20
        received = len(unpack_tokens(first.ids))
        while received < 4000:
            worker.controller.send("credit", Credit(tokens=1000), ref=slow, peer=CLIENT)
            event = worker.controller.expect("tokens", ref=slow)
            assert event.first_index == received
            received += len(unpack_tokens(event.ids))
        assert worker.controller.expect("done", ref=slow).generated == 4000


def test_questions_are_answered_while_the_engine_computes():
    with WorkerProcess({"backend": "stub", "n_ctx": 512, "stub": {"token_ms": 300.0}}) as worker:
        ref = infer(worker, text="hello", max_tokens=100)
        worker.controller.expect("tokens", ref=ref)
        for _ in range(20):
            assert worker.controller.call("status").status in ("prefilling", "generating")
        # Had each answer waited for the engine, 20 steps would have ended meanwhile.
        assert sum(envelope.kind == "tokens" for envelope, _ in worker.controller.inbox) < 20
        worker.controller.send("cancel", Cancel(), ref=ref, peer=CLIENT)
        done = worker.controller.expect("done", ref=ref)
        assert done.cancelled and done.cancel_reason == "client" and done.generated < 100


def test_a_deadline_ends_a_request():
    with WorkerProcess({"backend": "stub", "n_ctx": 512, "stub": {"token_ms": 50.0}}) as worker:
        ref = new_ref(MODEL_ID)
        worker.controller.send("infer", Infer(text="hello", max_tokens=400), ref=ref, peer=CLIENT, deadline_ms=300)
        done = worker.controller.expect("done", ref=ref)
        assert done.cancelled and done.cancel_reason == "deadline"


def test_a_failed_load_is_said_noted_and_not_restarted():
    process = WorkerProcess(stub={"fail_load": "wrong magic"})
    try:
        process.start(ready=False)
        failed = process.controller.expect("w.failed")
        assert (failed.code, failed.message) == ("ModelLoadFailed", "wrong magic")
        assert process.wait() == ExitCode.LOAD_FAILED
        note = json.loads(process.failed_note.read_text())
        assert (note["code"], note["message"], note["load_id"]) == ("ModelLoadFailed", "wrong magic", "load1")
    finally:
        process.close()


def test_a_failed_load_that_cannot_be_noted_is_not_restarted_either():
    process = WorkerProcess(stub={"fail_load": "wrong magic"})
    try:
        process.failed_note.with_suffix(".tmp").symlink_to("/dev/full")
        process.start(ready=False)
        assert process.controller.expect("w.failed").message == "wrong magic"
        assert process.wait() == ExitCode.LOAD_FAILED
    finally:
        process.close()


@pytest.mark.parametrize(
    ("spec_text", "words"),
    [
        (b"{", "truncated"),
        (b'{"model_id":"tiny","load_id":"x","config":{"n_ctx":"many"}}', "n_ctx"),
        (
            b'{"model_id":"tiny","load_id":"x","config":{"backend":"stub","nice":0,"cpu_affinity":[99999]}}',
            "cpu_affinity",
        ),
    ],
)
def test_a_bad_specification_is_said(spec_text, words):
    process = WorkerProcess(spec_text=spec_text)
    try:
        process.start(ready=False)
        failed = process.controller.expect("w.failed")
        assert failed.code == "ConfigError" and words in failed.message
        assert process.wait() == ExitCode.BAD_CONFIG
    finally:
        process.close()


def test_the_note_of_a_failure_is_gone_after_a_good_start():
    process = WorkerProcess()
    try:
        process.failed_note.write_text("{}")
        process.start()
        assert not process.failed_note.exists()
    finally:
        process.close()


def test_sigterm_leaves_with_zero_and_running_requests_to_a_successor():
    with WorkerProcess({"backend": "stub", "n_ctx": 8192, "stub": {"token_ms": 30.0}}) as worker:
        ref = infer(worker, text="hello", max_tokens=8000)
        worker.controller.expect("tokens", ref=ref)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == ExitCode.CLEAN
        with pytest.raises((AssertionError, TimeoutError)):
            worker.controller.expect("done", ref=ref, timeout_s=0.5)


def test_park_answers_then_waits_for_its_sigterm():
    with WorkerProcess() as worker:
        worker.controller.send("c.park", ParkBody(reason="unload"), ref=new_ref())
        worker.controller.expect("reply")
        assert worker.process.poll() is None
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == ExitCode.CLEAN


def test_a_new_controller_finds_the_worker_and_its_streams():
    with WorkerProcess({"backend": "stub", "n_ctx": 2048, "stub": {"token_ms": 10.0}}) as worker:
        ref = infer(worker, text="hello", max_tokens=200, credit=200)
        worker.controller.expect("tokens", ref=ref)
        worker.controller.close()
        worker.controller = FakeController(worker.endpoint)
        assert worker.controller.expect("w.hello").phase == "ready"
        worker.controller.send("resume", Resume(next_index=0), ref=ref, peer=CLIENT)
        received = {}
        while True:
            body = worker.controller.expect("accepted", "tokens", "done", ref=ref)
            if hasattr(body, "finish_reason"):
                break
            if hasattr(body, "first_index"):
                received |= dict(enumerate(unpack_tokens(body.ids), body.first_index))
        assert sorted(received) == list(range(200))


def test_a_killed_worker_is_followed_by_one_that_knows_nothing_and_goes_on_the_same():
    with WorkerProcess() as worker:
        accepted, tokens, _ = worker.controller.stream(infer(worker, text="once upon", max_tokens=30))
        ids = ids_of(tokens)
        ref = infer(worker, text="once upon", max_tokens=30)
        worker.controller.stream(ref)
        worker.kill()
        worker.start()
        worker.controller.send("resume", Resume(next_index=10), ref=ref, peer=CLIENT)
        assert worker.controller.expect("lost", ref=ref).incarnation > accepted.incarnation
        point = ResumePoint(delivered=pack_tokens(ids[:10]), seed=accepted.seed, deaths=1)
        infer(worker, ref=ref, tokens=accepted.prompt, max_tokens=30, attempt=1, resume=point)
        assert ids_of(worker.controller.stream(ref)[1]) == ids[10:]


def test_a_hung_engine_shows_in_the_heartbeats_and_does_not_keep_the_process():
    with WorkerProcess(stub={"hang_after_tokens": 3}) as worker:
        ref = infer(worker, text="hello", max_tokens=20)
        worker.controller.expect("tokens", ref=ref)
        beat = worker.controller.expect("w.beat", where=lambda beat: beat.busy_for_s > 1.0)
        assert beat.status in ("prefilling", "generating") and beat.stall_limit_s >= 60
        assert worker.controller.call("status").status == beat.status
        worker.process.send_signal(signal.SIGTERM)
        worker.controller.expect("w.beat", where=lambda beat: beat.status == "stopping")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.wait() == ExitCode.CLEAN


def test_sigterm_while_loading_leaves_at_once():
    process = WorkerProcess(stub={"hang_in_load": True})
    try:
        process.start(ready=False)
        process.controller.expect("w.progress")
        assert process.controller.call("status").status == "loading"
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == ExitCode.CLEAN
    finally:
        process.close()


def test_a_bad_id_or_none_is_a_usage_error():
    for arguments in ([], ["NOT/AN/ID"], ["a", "b"]):
        done = subprocess.run(
            [sys.executable, "-m", "workers", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == ExitCode.BAD_CONFIG and done.stderr


def test_a_worker_whose_parent_dies_dies_too():
    process = WorkerProcess()
    try:
        script = (
            "import subprocess, sys, time; worker = subprocess.Popen([sys.executable, '-m', 'workers', 'tiny']);"
            "print(worker.pid, flush=True); time.sleep(600)"
        )
        environment = {**os.environ, "ERLLAMA_RUN": str(process.run_dir), "ERLLAMA_HOME": str(process.home)}
        with subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as parent:
            pid = int(parent.stdout.readline())
            process.controller.expect("w.ready")
            parent.kill()
        until(lambda: not exists(pid), "the worker to follow its parent")
    finally:
        process.close()


def test_the_log_is_lines_of_json():
    with WorkerProcess() as worker:
        worker.controller.call("nonsense")
        events = [json.loads(line)["event"] for line in worker.log_text().splitlines()]
    assert "ready" in events and "refused" in events


def test_limits_of_the_process_are_set():
    config = {"backend": "stub", "nice": 3, "cpu_affinity": [0], "address_space_bytes": 8 << 30, "gpu_ids": [1]}
    with WorkerProcess(config) as worker:
        process = psutil.Process(worker.process.pid)
        assert (process.nice(), process.cpu_affinity()) == (os.nice(0) + 3, [0])
        assert process.rlimit(psutil.RLIMIT_AS)[0] == 8 << 30
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "500"
        # The template helper has a limit of its own below that one.
        call = worker.controller.call
        rendered = call(
            "apply_chat_template", c.ApplyTemplate(chat=ChatRequest(messages=[{"role": "user", "content": "a"}]))
        )
        assert "a<|im_end|>" in rendered.text
