"""ps, load, unload, restart, models, counters, status."""

import json
from types import SimpleNamespace

import pytest

from erllama_host import supervisor as package
from erllama_host.cli import versions
from erllama_host.errors import HostUnavailable, ModelLoadFailed, QueueFull
from erllama_host.protocol.calls import HostStatus, ModelInfo
from tests.support.fake_client import tiny


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


# ---- up and down, with a supervisor that is made up ------------------------------------------------------------------


@pytest.fixture
def supervisor(monkeypatch, host):
    """What `start_host` and `stop_host` were asked."""
    asked = []

    def start_host(paths, config, *, detach, on_progress):
        asked.append(("start", detach, sorted(config.models)))
        return SimpleNamespace(paths=paths, wait=lambda _timeout_s=None: 0)

    def stop_host(paths, *, now=False, drain_s=0.0, on_progress=None):
        asked.append(("stop", now))
        if not now and "interrupt" in asked:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(package, "start_host", start_host)
    monkeypatch.setattr(package, "stop_host", stop_host)
    monkeypatch.setattr(package, "host_state", lambda _paths: package.HostState(parent_pid=77))
    return asked


def test_up_in_the_background_waits_for_the_models_that_load_at_start(erllama, host, supervisor, tmp_path):
    config = tmp_path / "e.toml"
    config.write_text('[models.tiny]\nbackend = "stub"\n[models.later]\nbackend = "stub"\nlazy = true\n')
    ran = erllama("up", "-d", "--wait", "--config", str(config))
    assert ran.code == 0
    assert "pid 77" in ran.err
    assert supervisor == [("start", True, ["later", "tiny"])]
    host.infos["tiny"] = tiny(status="failed", last_failure="load failed: not a GGUF")
    ran = erllama("up", "-d", "--wait", "--config", str(config))
    assert ran.code == 4
    assert "tiny has failed: load failed: not a GGUF" in ran.err


def test_up_with_a_bad_configuration_starts_nothing(erllama, supervisor, tmp_path):
    config = tmp_path / "e.toml"
    config.write_text("[host]\ndrain = 2\n")
    ran = erllama("up", "--config", str(config))
    assert ran.code == 2
    assert "host.drain" in ran.err
    assert supervisor == []


def test_down_gives_up_its_patience_on_ctrl_c(erllama, supervisor):
    assert erllama("down").code == 0
    supervisor.append("interrupt")
    ran = erllama("down")
    assert ran.code == 0
    assert "stopping at once" in ran.err
    assert supervisor[-2:] == [("stop", False), ("stop", True)]


def test_the_client_alone_says_what_a_host_needs(erllama, supervisor, monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda _package: "not installed")
    ran = erllama("up", "-d")
    assert ran.code == 2
    assert "pip install 'erllama-host[host]'" in ran.err
    assert supervisor == []
