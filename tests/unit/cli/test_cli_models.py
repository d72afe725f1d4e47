"""ps, load, unload, restart, models, counters, status."""

import json

import pytest

from erllama_host.errors import HostUnavailable, ModelLoadFailed, QueueFull
from erllama_host.protocol.calls import HostStatus, ModelInfo


def test_ps_shows_every_model(erllama):
    ran = erllama("ps")
    titles, row = (line.split("\t") for line in ran.out.splitlines())
    shown = dict(zip(titles, row, strict=True))
    assert ran.code == 0
    assert shown["MODEL"] == "tiny"
    assert shown["STATUS"] == "generating"
    assert shown["TOK/S"] == "87.2"
    assert shown["CELLS"] == "25%"
    assert shown["HITS"] == "75%"
    assert shown["MEMORY"] == "812 MiB"
    assert shown["UP"] == "1h 02m"


def test_ps_json_has_every_field(erllama):
    models = json.loads(erllama("ps", "--json").out)["models"]
    assert set(models[0]) == set(ModelInfo.__struct_fields__)


def test_load_prints_the_id_and_passes_options_on(erllama, host, tmp_path):
    path = tmp_path / "big.gguf"
    ran = erllama("load", str(path), "--id", "big", "-o", "n_ctx=4096", "-o", "type_k=q8_0")
    assert (ran.code, ran.out, ran.err) == (0, "big\n", "")
    assert host.asked == [("load_model", str(path), "big", {"n_ctx": 4096, "type_k": "q8_0"})]


def test_load_json_is_the_model(erllama):
    assert json.loads(erllama("load", "x.gguf", "--json").out)["model_id"] == "erllama_model_1"


def test_unload_and_restart(erllama, host):
    assert erllama("restart", "tiny").code == 0
    assert erllama("unload", "tiny").code == 0
    assert host.infos == {}
    assert erllama("unload", "tiny").code == 1


def test_models_shows_pids_and_files(erllama):
    assert "tiny\tgenerating\t4242\t134.5M\t144 MiB\t/models/tiny.gguf" in erllama("models").out
    assert json.loads(erllama("models", "--json").out) == {"pids": {"tiny": [4242]}}


def test_counters_can_be_searched(erllama):
    assert erllama("counters", "hits").out == "COUNTER\tVALUE\nhits_exact\t2\n"
    assert json.loads(erllama("counters", "--json").out)["counters"]["restore_ms"] == 1.25


def test_status_shows_processes_and_models(erllama):
    ran = erllama("status")
    assert "erllama 0.1.0, protocol 1, up 1h 01m" in ran.out
    assert "killed by SIGKILL" in ran.out
    assert "tiny\tgenerating" in ran.out
    assert set(json.loads(erllama("status", "--json").out)) == set(HostStatus.__struct_fields__)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostUnavailable("no host answers; start one with `erllama up -d`"), 3),
        (QueueFull("the queue is full", retry_after_s=1.5), 5),
        (ModelLoadFailed("it is not a GGUF"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_sentence_and_a_code(erllama, host, error, code):
    host.fail_with = error
    ran = erllama("ps")
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err.splitlines()) == (0 if code == 130 else 1)
    assert "Traceback" not in ran.err


def test_a_bug_is_one_sentence_too_and_debug_shows_it(erllama, host):
    host.fail_with = ZeroDivisionError("a bug")
    ran = erllama("ps")
    assert ran.code == 70
    assert "ZeroDivisionError: a bug" in ran.err
    assert len(ran.err.splitlines()) == 1
    with pytest.raises(ZeroDivisionError):
        erllama("--debug", "ps")


def test_an_error_is_json_where_json_was_asked_for(erllama, host):
    host.fail_with = QueueFull("the queue is full", retry_after_s=1.5)
    ran = erllama("ps", "--json")
    assert json.loads(ran.err) == {
        "error": {
            "code": "QueueFull",
            "message": "the queue is full",
            "retryable": True,
            "details": {"retry_after_s": 1.5},
        }
    }


def test_the_last_words_of_a_model_are_shown(erllama, host):
    host.fail_with = ModelLoadFailed("it cannot be loaded", last_log_lines=["one", "invalid magic"])
    assert erllama("load", "x.gguf").err.splitlines() == [
        "erllama: it cannot be loaded",
        "    one",
        "    invalid magic",
    ]


@pytest.mark.parametrize(
    "words", [["lod"], ["load"], ["ps", "--no-such"], ["load", "x.gguf", "-o", "n_ctx"], ["cache", "nope"]]
)
def test_a_wrong_command_line_is_one_sentence(erllama, words):
    ran = erllama(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
