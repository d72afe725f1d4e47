"""What people are told of a worker's death: from its log's end to a sentence."""

import json

import pytest

from erllama_host.config import ModelConfig
from erllama_host.controller.deaths import given_up
from erllama_host.controller.ends import End, address_space_hint, blame_address_space, explain
from erllama_host.controller.last_words import SHOWN_LINES, last_words, no_memory, of_life, telling
from erllama_host.controller.lifecycle import Model
from erllama_host.errors import ModelFailed, ModelLoadFailed
from erllama_host.supervisor.notes import ExitNote

DUMP = """Resource temporarily unavailable (src/thread.cpp:241)
Fatal Python error: Aborted

Thread 0x00007fab21e14b81 (most recent call first):
  File "/lib/threading.py", line 331 in wait
  <no Python frame>

Current thread 0x00007fab21e14b80 (most recent call first):
  File "/lib/zmq/sugar/socket.py", line 164 in __init__
  File "<frozen runpy>", line 88 in _run_code
  ...

Extension modules: msgspec._core, numpy._core._multiarray_umath (total: 2)""".splitlines()
CRASHED = End("crashed", "crashed: signal 6 (SIGABRT)")


def line(level="info", pid=1, **fields):
    return json.dumps({"level": level, "process": "model:tiny", "pid": pid, **fields})


def test_last_words_are_those_that_matter():
    lines = [line(event="x"), "GGML_ASSERT(n > 0) failed", line(event="y"), " "]
    assert last_words(lines) == "GGML_ASSERT(n > 0) failed"
    model = Model("tiny", ModelConfig(backend="stub"), "x", last_log_lines=lines)
    note = ExitNote(1, 0.0, -6, respawn=False, reason="ended 3 times in a row before it was ready")
    error = given_up(model, note, explain(note))
    assert isinstance(error, ModelLoadFailed) and "SIGABRT" in error.message and "GGML_ASSERT" in error.message
    model.stays = True
    assert isinstance(given_up(model, note, explain(note)), ModelFailed)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([line("error", event="load_failed", message="no such tensor")], "no such tensor"),
        ([line("error", event="engine_ended", trace="Traceback:\n  File x\nRuntimeError: odd")], "RuntimeError: odd"),
        (["{not json"], "{not json"),
        (["[1]", line(event="x")], "[1]"),
        ([], ""),
    ],
)
def test_our_own_lines_say_what_they_are_about(lines, words):
    assert last_words(lines) == words


def test_a_stack_dump_hides_nothing():
    lines = telling([line(event="x"), *DUMP, *DUMP])
    assert lines == [line(event="x"), *DUMP[:2], *DUMP[:2]]
    assert last_words(lines) == "Resource temporarily unavailable (src/thread.cpp:241)"
    assert last_words(telling(DUMP[1:])) == "Fatal Python error: Aborted"
    assert telling([*DUMP, "something later"])[-1] == "something later"
    assert len(telling([f"line {number}" for number in range(50)])) == SHOWN_LINES


def test_earlier_lives_are_left_out():
    lines = [line(pid=1), "cannot allocate", line(pid=1), line(pid=2), "crash"]
    assert of_life(lines, 2) == [line(pid=2), "crash"]
    assert of_life(lines, 3) == ["crash"]
    assert of_life(["x"], 3) == ["x"]


@pytest.mark.parametrize(
    "words",
    [
        "cannot allocate memory for thread-local data: ABORT",
        "llama_model_load: error loading model: mmap failed: Cannot allocate memory",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 360.00 MB)",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Resource temporarily unavailable (src/thread.cpp:241)",
        line("error", event="engine_ended", trace="Traceback:\nMemoryError"),
        line(
            "error",
            event="engine_ended",
            trace="Traceback:\nRuntimeError: x.so: failed to map segment from shared object",
        ),
        "RuntimeError: can't start new thread",
    ],
)
def test_a_limit_is_blamed_when_memory_could_not_be_had(words):
    end = blame_address_space(CRASHED, 1 << 28, ["something", words, *DUMP[1:]])
    assert end.kind == "out_of_memory"
    assert end.text.startswith("out of address space: ") and end.text.endswith(
        "; raise address_space_bytes (now 268435456)"
    )
    assert address_space_hint(1 << 28, words) == "; raise address_space_bytes (now 268435456)"
    assert blame_address_space(CRASHED, None, [words]) == CRASHED, "without a limit it is another matter"
    assert address_space_hint(None, words) == ""


def test_a_limit_is_not_blamed_for_everything():
    lines = ["GGML_ASSERT(n > 0) failed", *DUMP[1:]]
    assert blame_address_space(CRASHED, 1 << 28, lines) == CRASHED
    hung = End("hung", "hung: no progress")
    assert blame_address_space(hung, 1 << 28, ["bad_alloc"]) == hung
    assert address_space_hint(1 << 28, "unknown model architecture") == "" == no_memory("all is well")
