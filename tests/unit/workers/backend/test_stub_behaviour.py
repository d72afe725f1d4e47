"""What the stub does on request: scripted answers, delays, crashes, hangs."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erllama_host.errors import ModelLoadFailed, NotSupported
from erllama_host.protocol.inference import SamplingParams
from tests.support import ggufs
from tests.support.backends import Blob, feed, greedy, open_stub_backend, rows_of
from workers.backend.base import DecodeStatus, KvMode

QUIET = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def text_of(backend, ids):
    return b"".join(map(backend.vocabulary.piece, ids)).decode()


@QUIET
@given(prompt=st.text("ab", max_size=8), script=st.text("ab", min_size=1, max_size=8))
def test_a_scripted_answer_is_given_whole_and_ended(prompt, script):
    backend = open_stub_backend(emit=script)
    ids = backend.vocabulary.tokenize("Q: " + prompt + "\n")
    answer = greedy(backend, 0, ids, len(script) + 1)
    assert text_of(backend, answer) == script
    assert backend.vocabulary.is_eog(answer[-1])


def test_a_script_may_hold_markers():
    backend = open_stub_backend(emit="<think>hm</think>yes")
    answer = greedy(backend, 0, backend.vocabulary.tokenize("?"), 8)
    assert [backend.vocabulary.special_piece(token) for token in answer][:4] == [b"<think>", b"h", b"m", b"</think>"]


def test_salts_and_prompts_change_the_answer():
    answers = {
        tuple(greedy(open_stub_backend(salt=salt), 0, prompt, 12))
        for salt in (0, 1)
        for prompt in ([97], [98], [97, 97])
    }
    assert len(answers) == 6


def test_cells_that_are_not_the_prompts_change_the_answer():
    backend = open_stub_backend()
    expected = feed(backend, 0, b"a prompt of some length")
    backend.clear(0)
    feed(backend, 0, b"another one, altogether")
    foreign = Blob(backend, 0, 0, 8)
    backend.clear(0)
    assert foreign.restore(backend, 0)
    assert not np.array_equal(expected, feed(backend, 0, b"of some length, but not those"[:15]))


def test_adapters_change_answers_and_kv():
    backend = open_stub_backend()
    plain = feed(backend, 0, b"prompt")
    handle = backend.load_adapter(str(ggufs.tiny("lora")))
    backend.attach([(handle, 1.0)])
    assert not np.array_equal(plain, feed(backend, 1, b"prompt"))
    backend.attach([])
    assert np.array_equal(plain, feed(backend, 2, b"prompt"))
    backend.free_adapter(handle)


def test_embeddings_are_unit_vectors_of_the_text():
    one, two, again = open_stub_backend().embed([[97], [98], [97]], normalize=True)
    assert np.array_equal(one, again) and not np.array_equal(one, two)
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)


def test_an_uncached_stub_says_so():
    verdict = open_stub_backend(kind="uncached").self_check()
    assert verdict.mode is KvMode.UNCACHED and verdict.reason


def test_a_load_can_fail_with_a_given_message():
    with pytest.raises(ModelLoadFailed, match="no luck"):
        open_stub_backend(fail_load="no luck")


def test_it_follows_a_grammar_and_takes_no_schema():
    backend = open_stub_backend()
    sampler = backend.make_sampler(SamplingParams(grammar='root ::= "no" "!"'), 1)
    logits = feed(backend, 0, b"?")
    answer = [sampler.sample_from(logits) for _ in range(4)]
    assert text_of(backend, answer) == "no!" and backend.vocabulary.is_eog(answer[-1])
    for call in (backend.check_sampling, lambda params: backend.make_sampler(params, 1)):
        with pytest.raises(NotSupported) as caught:
            call(SamplingParams(json_schema="{}"))
        assert caught.value.details["field"] == "json_schema"


def test_a_slow_decode_is_aborted_from_another_thread():
    backend = open_stub_backend(prefill_ms_per_token=60_000.0)
    timer = threading.Timer(0.02, backend.abort)
    timer.start()
    assert backend.decode(rows_of((0, 0, b"a prompt"))) is DecodeStatus.ABORTED
    timer.join()
    assert backend.length(0) == 0


DYING = """
import sys
sys.path.insert(0, {root!r})
from tests.support.backends import GREEDY, feed, open_stub_backend
backend = open_stub_backend(**{options!r})
sampler = backend.make_sampler(GREEDY, 1)
feed(backend, 0, b"some prompt")
row = len(b"some prompt") - 1
for index in range(6):
    token = sampler.sample(row)
    print(index, flush=True)
    feed(backend, 0, [token])
    row = 0
"""


def run_dying(**options):
    script = DYING.format(root=os.path.dirname(os.path.dirname(ggufs.__file__)).removesuffix("/tests"), options=options)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_it_dies_after_so_many_tokens():
    ended = run_dying(crash_after_tokens=3)
    assert ended.returncode == -signal.SIGKILL and ended.stdout.split() == ["0", "1", "2"]


def test_it_dies_of_a_text():
    ended = run_dying(crash_on_text="prompt")
    assert ended.returncode == -signal.SIGKILL and not ended.stdout
    assert run_dying(crash_on_text="other").returncode == 0


def test_it_dies_once_where_asked(tmp_path):
    flag = str(tmp_path / "crashed")
    first, second = (run_dying(crash_after_tokens=2, crash_once=flag) for _ in range(2))
    assert first.returncode == -signal.SIGKILL
    assert second.returncode == 0 and second.stdout.split() == [str(index) for index in range(6)]


def test_it_hangs_after_so_many_tokens():
    script = DYING.format(
        root=os.path.dirname(os.path.dirname(ggufs.__file__)).removesuffix("/tests"), options={"hang_after_tokens": 2}
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert [child.stdout.readline().strip() for _ in range(2)] == ["0", "1"]
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
    finally:
        child.kill()
        child.wait(timeout=30)
        child.stdout.close()
