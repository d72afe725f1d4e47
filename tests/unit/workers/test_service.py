"""The service loop between a controller's socket and a scripted engine."""

import pytest

from erllama_host.ids import new_ref
from erllama_host.process import ExitCode
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import (
    CLIENT_SIGN_OF_LIFE_S,
    AdapterUse,
    Cancel,
    Credit,
    Infer,
    Part,
    Resume,
    ResumePoint,
    SamplingParams,
    pack_tokens,
    unpack_tokens,
)
from erllama_host.protocol.link import Park as ParkBody
from tests.support.workers import MODEL_ID, RunningService, text_of, until
from workers.commands import Admitted, CancelRequest, EngineCall, EngineSnapshot, Failed, Hold, Park
from workers.model import EngineEnded, LoadAdvanced, LoadFailed
from workers.service import GRACE_S, Silence

CLIENT, OTHER = b"\x01client", b"\x01other"


@pytest.fixture(scope="module")
def shared():
    with RunningService() as service:
        yield service


def start(service, peer=CLIENT, **request):
    ref = new_ref(MODEL_ID)
    request = request or {"text": "hello"}
    service.controller.send("infer", Infer(**request), ref=ref, peer=peer)
    return ref


def test_a_stream_from_request_to_done(shared):
    controller, engine = shared.controller, shared.engine
    ref = start(shared, text="hello", max_tokens=5, params=SamplingParams(seed=7))
    submit = engine.submitted(ref)
    assert (submit.prompt, submit.max_tokens, submit.seed) == (list(b"hello"), 5, 7)
    engine.generate(ref, 0, "ab")
    engine.generate(ref, 2, "c")
    engine.finish(ref, b"abc", "length", parts=(Part("text", "!"),))
    accepted, tokens, done = controller.stream(ref)
    assert unpack_tokens(accepted.prompt) == list(b"hello") and accepted.seed == 7
    assert text_of(tokens, done) == "abc!" and done.parts == [Part("text", "!")]
    assert (done.finish_reason, done.generated, done.cancelled) == ("length", 3, False)


def test_max_tokens_is_clamped_and_the_reason_says_so(shared):
    ref = start(shared, text="x" * 500, max_tokens=100)
    assert shared.engine.submitted(ref).max_tokens == 12
    shared.engine.finish(ref, reason="length")
    assert shared.controller.stream(ref)[2].finish_reason == "context"


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        ({"text": "x" * 512}, "ContextOverflow", None),
        ({"tokens": pack_tokens([1, 99999])}, "InvalidRequest", "tokens"),
        ({"tokens": b"abc"}, "InvalidRequest", "tokens"),
        ({"text": ""}, "InvalidRequest", "prompt"),
        ({"text": "a", "params": SamplingParams(top_p=3.0)}, "InvalidRequest", "top_p"),
        ({"text": "a", "resume": ResumePoint(deaths=4), "attempt": 4}, "WorkerDied", None),
    ],
)
def test_what_is_wrong_with_a_request_is_said(shared, request_, code, field):
    ref = start(shared, **request_)
    error = shared.controller.expect("error", ref=ref)
    assert (error.code, error.details.get("field")) == (code, field)
    assert error.retryable is False


def test_a_resubmitted_request_goes_on_with_its_seed_adapters_and_tokens(shared):
    point = ResumePoint(delivered=pack_tokens(list(b"ab")), seed=42, adapters=[AdapterUse("a", 0.5)], deaths=2)
    ref = start(shared, text="hello", resume=point, attempt=1)
    submit = shared.engine.submitted(ref)
    assert (submit.delivered, submit.seed, submit.attempt, submit.alone) == (tuple(b"ab"), 42, 1, True)
    assert submit.adapters == (AdapterUse("a", 0.5),)
    shared.engine.generate(ref, 2, "c")
    shared.engine.finish(ref, b"abc")
    _, tokens, _ = shared.controller.stream(ref)
    assert [event.first_index for event in tokens] == [2]


def test_a_ref_is_never_run_twice(shared):
    ref = start(shared)
    shared.engine.submitted(ref)
    shared.engine.generate(ref, 0, "ab")
    shared.controller.expect("tokens", ref=ref)
    shared.controller.send("infer", Infer(text="hello"), ref=ref, peer=CLIENT)
    again = shared.controller.expect("tokens", ref=ref)
    assert unpack_tokens(again.ids) == list(b"ab")
    shared.engine.finish(ref)
    shared.controller.expect("done", ref=ref)
    shared.controller.send("infer", Infer(text="hello", attempt=1), ref=ref, peer=CLIENT)
    assert shared.controller.expect("done", ref=ref).finish_reason == "stop"
    assert sum(getattr(command, "ref", None) == ref for command in shared.engine.commands) == 1


def test_resume_replays_and_an_unknown_ref_is_lost(shared):
    ref = start(shared)
    shared.engine.submitted(ref)
    shared.engine.generate(ref, 0, "a")
    shared.engine.generate(ref, 1, "b")
    shared.engine.finish(ref)
    shared.controller.stream(ref)
    shared.controller.send("resume", Resume(next_index=1), ref=ref, peer=CLIENT)
    assert [event.first_index for event in shared.controller.stream(ref)[1]] in ([1], [0])
    unknown = new_ref(MODEL_ID)
    shared.controller.send("resume", Resume(), ref=unknown, peer=CLIENT)
    assert shared.controller.expect("lost", ref=unknown).incarnation


def test_strangers_cannot_steer_a_stream(shared):
    ref = start(shared)
    shared.engine.submitted(ref)
    shared.controller.send("cancel", Cancel(), ref=ref, peer=OTHER)
    shared.controller.send("resume", Resume(), ref=ref, peer=OTHER)
    assert shared.controller.expect("error", ref=ref).code == "Forbidden"
    assert shared.engine.has(CancelRequest, ref=ref) is None
    shared.controller.send("cancel", Cancel(), ref=ref, peer=CLIENT)
    until(lambda: shared.engine.has(CancelRequest, ref=ref, reason="client"), "CancelRequest")
    shared.engine.finish(ref, reason="cancelled", cancel_reason="client")
    assert shared.controller.expect("done", ref=ref).cancelled is True


def test_out_of_credit_the_engine_runs_ahead_and_is_held(shared):
    ref = start(shared, text="hello", credit=1)
    shared.engine.submitted(ref)
    shared.engine.generate(ref, 0, "a")
    shared.engine.generate(ref, 1, "b" * 1024)
    until(lambda: shared.engine.has(Hold, ref=ref, held=True), "Hold")
    assert unpack_tokens(shared.controller.expect("tokens", ref=ref).ids) == [ord("a")]
    shared.controller.send("credit", Credit(tokens=1100), ref=ref, peer=CLIENT)
    assert shared.controller.expect("tokens", ref=ref).first_index == 1
    until(lambda: shared.engine.has(Hold, ref=ref, held=False), "release")
    shared.engine.finish(ref)
    shared.controller.expect("done", ref=ref)


def test_an_error_of_the_engine_ends_the_stream(shared):
    from erllama_host.errors import SessionBusy

    ref = start(shared)
    shared.engine.submitted(ref)
    shared.engine.report(Failed(ref, SessionBusy("busy")))
    error = shared.controller.stream(ref)[2]
    assert (error.code, error.retryable) == ("SessionBusy", True)


def test_the_adapter_set_is_told_when_the_request_is_admitted(shared):
    ref = start(shared)
    shared.engine.submitted(ref)
    shared.controller.expect("accepted", ref=ref)
    shared.engine.report(Admitted(ref, (AdapterUse("a", 1.0),)))
    assert shared.controller.expect("accepted", ref=ref).adapters == [AdapterUse("a", 1.0)]
    shared.engine.finish(ref)
    shared.controller.expect("done", ref=ref)


def test_text_calls_are_answered_without_the_engine(shared):
    controller = shared.controller
    ids = controller.call("tokenize", c.Tokenize(text="hé<|im_end|>", parse_special=True)).tokens
    assert unpack_tokens(ids) == [*"hé".encode(), 259]
    assert controller.call("detokenize", c.Detokenize(tokens=ids)).text == "hé"
    assert controller.call("detokenize", c.Detokenize(tokens=ids, special=True)).text == "hé<|im_end|>"
    assert len(unpack_tokens(controller.call("tokenize", c.Tokenize(text="x" * 100_000)).tokens)) == 100_000
    row = pack_tokens(list(b"the cat and the "))
    assert unpack_tokens(controller.call("draft", c.Draft(tokens=row, n=3)).tokens) == list(b"cat")
    assert controller.call("detokenize", c.Detokenize(tokens=pack_tokens([70000]))).code == "InvalidRequest"


def test_status_and_info_come_from_the_snapshot(shared):
    assert shared.controller.call("status").status == "idle"
    shared.engine.snapshot = EngineSnapshot(phase="generating", used_cells=7, counters={"hits_live": 2, "misses": 1})
    assert shared.controller.call("status").status == "generating"
    info = shared.controller.call("worker_info")
    assert (info.model_id, info.n_ctx, info.used_cells, info.cache_hits, info.cache_misses) == (MODEL_ID, 512, 7, 2, 1)
    assert info.resident_bytes > 0 and info.kv_mode == "segments" and info.has_chat_template
    beat = shared.controller.expect("w.beat", where=lambda beat: beat.status == "generating")
    assert beat.busy_for_s == 0 and beat.counters == {"hits_live": 2, "misses": 1}
    shared.engine.snapshot = EngineSnapshot(cache_refused="blocks of another length")
    info = shared.controller.call("worker_info")
    assert (info.kv_mode, info.kv_reason) == ("uncached", "blocks of another length")
    shared.engine.snapshot = EngineSnapshot()


def test_calls_of_the_engine_are_handed_over_with_ids(shared):
    shared.engine.answers["embed"] = c.Vectors(vectors=[b"1234"], n_embd=1)
    answer = shared.controller.call("embed", c.Embed(texts=["ab"]))
    assert answer.vectors == [b"1234"]
    assert shared.engine.has(EngineCall, name="embed").body.inputs == [pack_tokens(list(b"ab"))]
    assert shared.controller.call("embed", c.Embed()).code == "InvalidRequest"
    assert (
        shared.controller.call("cached_prefix_len", c.CachedPrefix(tokens=pack_tokens([70000]))).code
        == "InvalidRequest"
    )


def test_a_call_that_the_engine_does_not_answer_times_out(shared):
    assert shared.controller.call("evict", c.Evict(), deadline_ms=50).code == "Timeout"


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        ("nonsense", b"\x80", "unknown kind"),
        ("infer", b"\xc1", "not MessagePack"),
        ("infer", b"\x01", "Expected `object`"),
        ("infer", b"\x81\xa3foo\x01", "unknown field `foo`"),
        ("tokenize", b"\x80", "required field `text`"),
        ("c.park", b"\x80", "unknown kind"),
    ],
)
def test_nonsense_is_answered_and_the_loop_goes_on(shared, kind, raw, words):
    error = shared.controller.call(kind, raw=raw)
    assert error.code == "InvalidRequest" and words in error.message
    assert shared.controller.call("status").status == "idle"


def test_a_faulty_credit_does_not_end_the_stream(shared):
    ref = start(shared)
    shared.engine.submitted(ref)
    shared.controller.send("credit", raw=b"\xc1", ref=ref, peer=CLIENT)
    shared.controller.send("credit", Credit(tokens=-5), ref=ref, peer=CLIENT)
    shared.engine.finish(ref)
    _, _, end = shared.controller.stream(ref)
    assert end.finish_reason == "stop"


def test_frames_that_are_no_message_are_ignored(shared):
    shared.controller.socket.send_multipart([shared.controller.worker, b"\xc1"])
    shared.controller.socket.send_multipart([shared.controller.worker, b""])
    shared.controller.send("status", version=99)
    assert shared.controller.call("status").status == "idle"


def test_hello_is_said_again_when_asked(shared):
    shared.controller.send("c.hello")
    hello = shared.controller.expect("w.hello")
    assert (hello.model_id, hello.phase, hello.load_id) == (MODEL_ID, "ready", "load1")
    assert hello.info.n_ctx == 512


def test_the_queue_is_bounded():
    with RunningService(max_queue=1) as service:
        refs = [start(service) for _ in range(3)]
        for ref in refs:
            service.engine.submitted(ref)
        error = service.controller.expect("error", ref=start(service))
        assert error.code == "QueueFull" and error.retryable and error.details["retry_after_s"] > 0
        service.engine.finish(refs[0])
        service.controller.expect("done", ref=refs[0])
        service.engine.submitted(start(service))


def test_while_loading_only_questions_about_it_are_answered():
    with RunningService(load=False) as service:
        controller = service.controller
        assert controller.call("status").status == "loading"
        assert controller.call("worker_info").status == "loading"
        assert controller.call("tokenize", c.Tokenize(text="a")).code == "ModelLoading"
        error = controller.expect("error", ref=start(service))
        assert error.code == "ModelLoading" and error.details["retry_after_s"] > 0
        service.inbox.put(LoadAdvanced("weights", 0.5))
        assert controller.expect("w.progress").fraction == 0.5


def test_a_failed_load_is_reported_and_ends_the_process():
    from erllama_host.errors import ModelLoadFailed

    with RunningService(load=False) as service:
        service.inbox.put(LoadFailed(ModelLoadFailed("no such tensor")))
        failed = service.controller.expect("w.failed")
        assert (failed.code, failed.message) == ("ModelLoadFailed", "no such tensor")
        assert service.join() == ExitCode.LOAD_FAILED


def test_park_is_answered_when_the_engine_has_saved_and_sigterm_ends():
    with RunningService() as service:
        controller, engine = service.controller, service.engine
        engine.answers["park"] = c.Saved(saved_tokens=5)
        controller.send("c.park", ParkBody(reason="unload", finish_s=0.0, save_s=3.0), ref="@host/" + "0" * 32)
        assert controller.expect("reply")["saved_tokens"] == 5
        assert engine.has(Park, reason="unload", finish_s=0.0, save_s=3.0)
        error = controller.expect("error", ref=start(service))
        assert error.code == "ModelLoading"
        assert controller.call("status").status == "stopping"
        service.terminate()
        assert service.join() == ExitCode.CLEAN


def test_a_model_that_is_parked_while_it_loads_never_serves():
    with RunningService(load=False) as service:
        service.controller.send("c.park", ParkBody(reason="unload", finish_s=0.0, save_s=3.0), ref="@host/" + "0" * 32)
        service.controller.expect("reply")
        service.load(wait=False)
        assert service.controller.expect("error", ref=start(service)).code == "ModelLoading"
        assert service.controller.call("status").status == "stopping"
        assert not any(envelope.kind == "w.ready" for envelope, _ in service.controller.inbox)


def test_sigterm_parks_first_and_a_second_one_does_not_wait():
    with RunningService() as service:
        service.terminate()
        until(lambda: service.engine.has(Park, reason="handover"), "Park")
        service.terminate()
        assert service.join() == ExitCode.CLEAN


def test_a_younger_incarnation_fences_this_one():
    with RunningService() as service:
        service.controller.send("c.fence")
        assert service.join() == ExitCode.FENCED


@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("bug"), ExitCode.CRASHED), (MemoryError(), ExitCode.OUT_OF_MEMORY)]
)
def test_a_dead_engine_ends_the_process(error, code):
    with RunningService() as service:
        service.inbox.put(EngineEnded(error))
        assert service.join() == code


def test_parts_reach_the_client_with_their_channels(shared):
    from workers.commands import Generated

    ref = start(shared)
    shared.engine.submitted(ref)
    shared.engine.report(Generated(ref, 0, (1, 2), (Part("thinking", "h"), Part("text", "x"))))
    shared.engine.finish(ref)
    assert shared.controller.stream(ref)[1][0].parts == [Part("thinking", "h"), Part("text", "x")]


def connected_silence():
    silence = Silence()
    silence.connection(-GRACE_S, connected=True)
    return silence


def first_judged(silence, since):
    """The first time after `since` at which silence may be judged, with the loop turning all the time."""
    turns = (since + 0.25 * turn for turn in range(1, 100))
    return next(now for now in turns if silence.may_be_judged(now, all_heard=True))


def test_silence_is_judged_a_few_times_a_second_and_only_when_all_is_heard():
    silence = connected_silence()
    assert silence.may_be_judged(0.0, all_heard=True)
    assert not silence.may_be_judged(0.1, all_heard=True)
    assert not silence.may_be_judged(0.3, all_heard=False)
    assert silence.may_be_judged(0.4, all_heard=True)


def test_after_a_pause_of_our_own_clients_get_time_to_be_heard():
    silence = connected_silence()
    assert silence.may_be_judged(0.0, all_heard=True)
    assert not silence.may_be_judged(60.0, all_heard=True)
    assert first_judged(silence, 60.0) >= 60.0 + CLIENT_SIGN_OF_LIFE_S


def test_while_the_controller_is_away_and_soon_after_nobody_is_silent():
    silence = connected_silence()
    silence.connection(0.0, connected=False)
    assert not any(silence.may_be_judged(0.25 * turn, all_heard=True) for turn in range(200))
    silence.connection(50.0, connected=True)
    assert first_judged(silence, 50.0) >= 50.0 + CLIENT_SIGN_OF_LIFE_S
