"""Requests from queue to end, on the stub: batching, order, cancellation, credit, resumption, limits."""

import pytest

from erllama_host.errors import ContextOverflow, InvalidRequest, ModelLoading, QueueFull, SessionBusy
from erllama_host.protocol.inference import SamplingParams
from tests.support.engines import Harness
from workers.commands import Admitted, Answer, CancelRequest, Failed, Finished, Generated, Hold, Park, Stop
from workers.engine.loop import SNAPSHOT_EVERY_S
from workers.sequence import Phase

LONG = "once upon a time there was a long prompt. " * 8
SEEDED = SamplingParams(temperature=0.9, top_k=20, repetition_penalty=1.2)


def alone(prompt, **fields):
    """The answer a request gets on a fresh engine with nobody beside it."""
    harness = Harness()
    ref = harness.submit(prompt, **fields)
    end = harness.finish(ref)
    return end.generated, harness.text(ref)


def test_an_answer_is_reported_in_order_and_ends_once():
    harness = Harness()
    ref = harness.submit("hello", max_tokens=10)
    end = harness.finish(ref)
    assert isinstance(end, Finished) and end.finish_reason == "length"
    assert next(type(one) for one in harness.reports if getattr(one, "ref", None) == ref) is Admitted
    assert tuple(harness.ids(ref)) == end.generated and len(end.generated) == 10
    assert end.stats.prompt_tokens == 5 and end.stats.generated_tokens == 10 and end.finish_len == 14
    assert harness.drift() == []


@pytest.mark.parametrize("params", [SamplingParams(), SEEDED], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_company(params):
    prompts = [f"request number {n}, which is {'quite ' * n}long" for n in range(8)]
    harness = Harness(n_seq_max=4)
    refs = [harness.submit(prompt, max_tokens=20, params=params) for prompt in prompts]
    harness.finish(*refs)
    for ref, prompt in zip(refs, prompts, strict=True):
        assert harness.end_of(ref).generated == alone(prompt, max_tokens=20, params=params)[0]
    assert harness.drift() == []


def test_one_decode_mixes_prefill_and_decode_rows():
    harness = Harness(n_batch=32)
    first = harness.submit("short", max_tokens=40)
    harness.until(lambda: harness.core.num_streaming == 1)
    second = harness.submit(LONG, max_tokens=2)
    batches = []
    decode = harness.core.backend.decode

    def spy(rows):
        batches.append((len(rows), len(set(rows.seqs.tolist()))))
        return decode(rows)

    harness.core.backend.decode = spy
    harness.finish(second)
    mixed = [rows for rows, seqs in batches if seqs == 2]
    assert mixed and max(mixed) == 32, "the running stream has its row in full batches of the other's prefill"
    harness.finish(first)
    assert harness.end_of(first).generated == alone("short", max_tokens=40)[0]


def test_a_higher_priority_goes_first_and_waiting_raises_it():
    harness = Harness(n_seq_max=1)
    running = harness.submit("running", max_tokens=5)
    harness.tick()
    low = harness.submit("low", max_tokens=1)
    high = harness.submit("high", max_tokens=1, priority=5)
    harness.finish(running, low, high)
    order = [one.ref for one in harness.reports if isinstance(one, Admitted)]
    assert order == [running, high, low]

    harness = Harness(n_seq_max=1)
    running = harness.submit("running", max_tokens=5)
    harness.tick()
    old = harness.submit("old", max_tokens=1)
    harness.clock.now += 60
    young = harness.submit("young", max_tokens=1, priority=5)
    harness.finish(running, old, young)
    assert [one.ref for one in harness.reports if isinstance(one, Admitted)] == [running, old, young]


def test_the_queue_is_bounded():
    harness = Harness(n_seq_max=1, max_queue=2)
    refs = [harness.submit(f"{n}", max_tokens=30) for n in range(1)]
    harness.tick()
    refs += [harness.submit(f"{n}", max_tokens=3) for n in range(1, 4)]
    harness.tick()
    refused = harness.end_of(refs[3])
    assert isinstance(refused.error, QueueFull) and refused.error.retry_after_s > 0
    harness.finish(*refs)
    assert all(isinstance(harness.end_of(ref), Finished) for ref in refs[:3])


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.PREFILL, Phase.DECODE])
def test_cancel_anywhere(phase):
    harness = Harness(n_seq_max=1, n_batch=32)
    if phase is Phase.QUEUED:
        harness.submit("blocker", max_tokens=50)
        harness.tick()
    ref = harness.submit(LONG, max_tokens=50)
    harness.until(lambda: ref in harness.core.by_ref and harness.core.by_ref[ref].phase is phase)
    harness.post(CancelRequest(ref, "client"))
    harness.tick()
    end = harness.end_of(ref)
    assert (end.finish_reason, end.cancel_reason) == ("cancelled", "client")
    assert tuple(harness.ids(ref)) == end.generated
    harness.post(CancelRequest("nobody", "client"))
    harness.settle()
    assert harness.drift() == []


def test_a_deadline_ends_a_request_in_the_queue_and_in_decode():
    harness = Harness(n_seq_max=1)
    first = harness.submit("first", max_tokens=400, deadline=harness.clock.now + 0.05)
    second = harness.submit("second", max_tokens=5, deadline=harness.clock.now + 0.02)
    harness.finish(first, second)
    assert [harness.end_of(ref).cancel_reason for ref in (first, second)] == ["deadline", "deadline"]
    assert 0 < len(harness.end_of(first).generated) < 400 and not harness.end_of(second).generated


def test_a_held_request_stays_out_of_ticks_and_slows_nobody_else():
    harness = Harness()
    held, other = harness.submit("held", max_tokens=30), harness.submit("other", max_tokens=30)
    harness.until(lambda: harness.core.num_streaming == 2)
    harness.post(Hold(held, True))
    harness.finish(other)
    harness.tick(20)
    assert harness.end_of(held) is None
    num_reported = len(harness.ids(held))
    harness.tick(5)
    assert len(harness.ids(held)) == num_reported
    harness.post(Hold(held, False))
    harness.finish(held)
    assert harness.end_of(held).generated == alone("held", max_tokens=30)[0]


def test_stop_strings_across_tokens_end_the_answer_and_are_not_shown():
    harness = Harness(stub={"emit": "one two STOP three"})
    ref = harness.submit("x", max_tokens=100, stop=("STOP",))
    assert harness.finish(ref).finish_reason == "stop_string"
    assert harness.text(ref) == "one two "


def test_end_of_generation_and_ignore_eos():
    harness = Harness(stub={"emit": "short"})
    ref = harness.submit("x", max_tokens=100)
    end = harness.finish(ref)
    assert end.finish_reason == "stop" and harness.text(ref) == "short" and len(end.generated) == 5
    assert harness.finish(harness.submit("x", max_tokens=12, ignore_eos=True)).finish_reason == "length"


def test_prefill_only():
    harness = Harness()
    end = harness.run("some prompt to keep", max_tokens=0)
    assert end.finish_reason == "prefill" and end.generated == () and end.finish_len == 19
    again = harness.run("some prompt to keep", max_tokens=0)
    assert again.cache.kind == "live" and again.stats.prefilled_tokens == 0


def test_logprobs_come_one_per_token():
    harness = Harness()
    ref = harness.submit("hello", max_tokens=4, params=SamplingParams(logprobs=3))
    harness.finish(ref)
    rows = [one for report in harness.of(ref, Generated) for one in report.logprobs]
    assert len(rows) == 4 and all(len(row.top) == 3 and row.logprob <= 0 for row in rows)
    assert all(row.top[0][0] == token for row, token in zip(rows, harness.ids(ref), strict=True)), (
        "greedy is the likeliest"
    )


@pytest.mark.parametrize("params", [SamplingParams(), SEEDED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("delivered", [1, 7, 19])
def test_a_resumed_request_goes_on_with_the_same_tokens_and_text(params, delivered):
    prompt = "tell me a story"
    whole, text = alone(prompt, max_tokens=20, params=params, stop=("zzzz",))
    harness = Harness()
    ref = harness.submit(prompt, max_tokens=20, params=params, stop=("zzzz",), delivered=whole[:delivered], attempt=1)
    end = harness.finish(ref)
    assert end.generated == whole
    assert tuple(harness.ids(ref)) == whole[delivered:]
    assert harness.of(ref, Generated)[0].first_index == delivered
    assert text.endswith(harness.text(ref)) and len(harness.text(ref)) >= 20 - delivered


def test_a_resumed_request_that_was_complete_ends_at_once():
    whole, _ = alone("tell me", max_tokens=6)
    harness = Harness()
    ref = harness.submit("tell me", max_tokens=6, delivered=whole, attempt=1)
    end = harness.finish(ref)
    assert end.finish_reason == "length" and end.generated == whole and harness.ids(ref) == []


def test_tokens_within_the_interval_leave_together_but_the_first_at_once():
    harness = Harness(stream_interval_ms=20.0)
    ref = harness.submit("hello", max_tokens=45)
    harness.finish(ref)
    sizes = [len(report.ids) for report in harness.of(ref, Generated)]
    assert sizes[0] == 1 and sum(sizes) == 45 and len(sizes) <= 5, sizes


def test_held_tokens_leave_before_a_step_with_prefill_rows():
    harness = Harness(stream_interval_ms=1000.0)
    ref = harness.submit("hello", max_tokens=50)
    harness.tick(10)
    assert len(harness.ids(ref)) == 1
    harness.submit(LONG, max_tokens=1)
    seen = []
    decode = harness.core.backend.decode

    def spy(rows):
        seen.append(
            len(harness.ids(ref)) + sum(len(r.ids) for r in harness.mailbox.reports() if isinstance(r, Generated))
        )
        return decode(rows)

    harness.core.backend.decode = spy
    harness.tick()
    assert seen[0] == 10


def test_a_request_that_is_alone_has_no_company():
    harness = Harness()
    first = harness.submit("first", max_tokens=10)
    harness.tick()
    lonely = harness.submit("lonely", max_tokens=10, alone=True)
    third = harness.submit("third", max_tokens=10)
    together = set()
    while not all(harness.end_of(ref) for ref in (first, lonely, third)):
        harness.tick()
        running = frozenset(request.ref for request in harness.core.running)
        together.add(running)
    assert frozenset({lonely}) in together
    assert not any(lonely in group and len(group) > 1 for group in together)


def test_a_session_runs_one_request_at_a_time():
    harness = Harness()
    first = harness.submit("first", max_tokens=10, session_id="s")
    second = harness.submit("second", max_tokens=10, session_id="s")
    harness.finish(first, second)
    assert isinstance(harness.end_of(second).error, SessionBusy)
    assert isinstance(harness.run("third", session_id="s"), Finished)


def test_sampler_problems_fail_the_request_alone():
    harness = Harness()
    bad = harness.submit("x", params=SamplingParams(logit_bias={"999999": 1.0}))
    good = harness.submit("y", max_tokens=3)
    harness.finish(bad, good)
    assert isinstance(harness.end_of(bad), Failed) and isinstance(harness.end_of(bad).error, InvalidRequest)
    assert isinstance(harness.end_of(good), Finished)


@pytest.mark.parametrize("n_cells", [160, 192, 256])
def test_when_cells_run_out_requests_are_preempted_and_still_answer_right(n_cells):
    prompts = [f"{n} is the number of this prompt, whatever it says" for n in range(6)]
    harness = Harness(n_cells=n_cells, n_ctx=128, n_seq_max=4, n_batch=64)
    refs = [harness.submit(prompt, max_tokens=70) for prompt in prompts]
    harness.finish(*refs)
    for ref, prompt in zip(refs, prompts, strict=True):
        assert harness.end_of(ref).generated == alone(prompt, max_tokens=70)[0]
    assert harness.core.counters["preemptions"] > 0
    assert harness.drift() == []


def test_a_prompt_that_cannot_fit_at_all_is_refused_and_an_answer_that_outgrows_the_cells_ends():
    harness = Harness(n_cells=64, n_ctx=512)
    assert isinstance(harness.run("p" * 100).error, ContextOverflow)
    end = harness.run("p" * 50, max_tokens=100)
    assert end.finish_reason == "context" and 0 < len(end.generated) < 100
    assert harness.drift() == []


def test_parking_ends_what_waits_lets_run_what_runs_and_refuses_the_rest():
    harness = Harness(n_seq_max=1)
    running = harness.submit("running", max_tokens=10)
    harness.tick()
    waiting = harness.submit("waiting")
    harness.tick()
    harness.post(Park(77, "unload", finish_s=10.0, save_s=1.0))
    late = harness.submit("late")
    harness.finish(running, waiting, late)
    assert harness.end_of(running).finish_reason == "length"
    assert harness.end_of(waiting).cancel_reason == "unload"
    assert isinstance(harness.end_of(late).error, ModelLoading)
    answer = harness.until(lambda: harness.answer_of(77))
    assert isinstance(answer, Answer) and answer.error is None


def test_parking_cuts_off_what_runs_too_long():
    harness = Harness()
    running = harness.submit("running", max_tokens=400)
    harness.tick()
    harness.post(Park(77, "shutdown", finish_s=0.02, save_s=1.0))
    harness.until(lambda: harness.answer_of(77))
    end = harness.end_of(running)
    assert end.cancel_reason == "shutdown" and 0 < len(end.generated) < 400


def test_stop_leaves_the_loop_and_ends_what_is_left():
    harness = Harness()
    ref = harness.submit("running", max_tokens=400)
    harness.tick()
    harness.post(Stop())
    harness.serving.serve()
    harness.close()
    harness.reports += harness.mailbox.reports()
    assert harness.end_of(ref).cancel_reason == "shutdown"


def test_snapshots_tell_what_goes_on():
    harness = Harness()
    ref = harness.submit(LONG, max_tokens=5)
    harness.finish(ref)
    harness.settle()
    phases = [snapshot.phase for snapshot in harness.snapshots]
    assert phases[0] == "prefilling" and "generating" in phases and phases[-1] == "idle"
    assert harness.snapshots[-1].counters["finished"] == 1
    assert harness.snapshots[-1].used_cells == harness.snapshots[-1].live_cells > 0


def test_an_aborted_decode_is_computed_again():
    harness = Harness()
    ref = harness.submit("hello", max_tokens=10)
    harness.tick(3)
    harness.core.backend.abort()
    harness.finish(ref)
    assert harness.end_of(ref).generated == alone("hello", max_tokens=10)[0]
    assert harness.core.counters["decodes_aborted"] == 1


def test_drifted_cells_are_found_when_idle_and_everything_is_cleared():
    harness = Harness()
    harness.run("hello", max_tokens=3)
    harness.settle()
    live = next(iter(harness.core.pool.cells))
    harness.core.backend.truncate(live.seq, 2)
    harness.run("something else", max_tokens=3)
    harness.settle()
    assert harness.core.counters["errors_InternalError"] == 1 and "cells_drifted" in harness.log.getvalue()
    assert len(harness.core.pool.cells) == 0 and harness.drift() == []
    assert harness.run("hello", max_tokens=10).generated == alone("hello", max_tokens=10)[0]


def test_a_preempted_request_reports_what_the_cache_did_at_first():
    harness = Harness(n_cells=192, n_ctx=128, n_seq_max=3, n_batch=64)
    refs = [harness.submit(f"{n} is the number of this prompt, whatever it says", max_tokens=70) for n in range(4)]
    harness.finish(*refs)
    assert harness.core.counters["preemptions"] > 0
    for ref in refs:
        end = harness.end_of(ref)
        assert end.cache.read_tokens <= end.stats.prompt_tokens
        assert end.stats.prefilled_tokens >= end.stats.prompt_tokens - end.cache.read_tokens


def test_what_is_computed_is_told_before_it_is_and_not_more_often_than_somebody_looks():
    harness = Harness(n_batch=64)
    phases = []
    decode = harness.core.backend.decode

    def spy(rows):
        phases.append(harness.snapshots[-1].phase)
        return decode(rows)

    harness.core.backend.decode = spy
    harness.run("hello, this is a prompt of more than one batch " * 3, max_tokens=int(4 * SNAPSHOT_EVERY_S / 0.001))
    prefills = phases.count("prefilling")
    assert prefills > 1 and phases[prefills:] == ["generating"] * (len(phases) - prefills)
    assert prefills + 4 <= len(harness.snapshots) <= prefills + 7


def test_most_steps_of_streams_that_go_on_need_no_plan():
    harness = Harness(n_seq_max=4)
    harness.finish(*(harness.submit(f"stream {number}", max_tokens=20) for number in range(4)))
    assert harness.num_short_ways >= 15


def test_who_ran_at_two_deaths_is_told_that_it_runs_alone_before_anything_is_computed():
    harness = Harness(n_seq_max=4)
    first = harness.submit("the first", max_tokens=6)
    harness.tick(3)
    suspect = harness.submit("a suspect", max_tokens=3, alone=True)
    announced_at, neighbours = [], []
    announce, decode = harness.mailbox.announce, harness.core.backend.decode

    def announced():
        if harness.mailbox._unannounced and any(isinstance(each, Admitted) for each in harness.mailbox._reports):
            announced_at.append(len(neighbours))
        announce()

    def computed(rows):
        if any(one.ref == suspect for one in harness.core.running):
            assert announced_at, "its client would not know"
            neighbours.append(len(harness.core.running) - 1)
        return decode(rows)

    harness.mailbox.announce, harness.core.backend.decode = announced, computed
    harness.finish(first, suspect)
    (admitted,) = harness.of(suspect, Admitted)
    assert admitted.alone and not harness.of(first, Admitted)[0].alone
    assert announced_at[0] == 0 and neighbours and set(neighbours) == {0}
