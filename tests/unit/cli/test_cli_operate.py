"""events, logs, cache, tokenize, embed, watch, versions, help."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from erllama_host.cli.logs import Tail, merged
from erllama_host.cli.main import COMMANDS, GROUPS, main
from erllama_host.cli.versions import llama_cpp_version
from erllama_host.cli.watch import render
from erllama_host.protocol.calls import Event
from tests.support.fake_client import FakeClient, segment, tiny

# ---- events ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(host):
    host.journal = [
        Event(seq=1, at=1_700_000_000.0, name="ready", model="tiny", fields={"pid": 42}),
        Event(
            seq=2,
            at=1_700_000_001.0,
            name="crashed",
            model="big",
            fields={"why": "killed by SIGKILL", "lines": ["a", "b"]},
        ),
    ]
    return host.journal


def test_events_are_lines(erllama, journal):
    lines = erllama("events").out.splitlines()
    assert lines[0].split("\t") == ["AT", "EVENT", "MODEL", "DETAILS"]
    assert lines[1].split("\t")[1:] == ["ready", "tiny", "pid=42"]
    assert lines[2].split("\t")[1:] == ["crashed", "big", "why=killed by SIGKILL lines=a | b"]


def test_events_of_one_model_and_the_latest(erllama, journal):
    assert "ready" not in erllama("events", "--model", "big").out
    assert "ready" not in erllama("events", "-n", "1").out


def test_events_follow_until_ctrl_c_and_json_is_one_object_a_line(erllama, journal):
    ran = erllama("events", "-f", "--json")
    assert ran.code == 130
    assert [json.loads(line)["name"] for line in ran.out.splitlines()] == ["ready", "crashed"]


# ---- logs ------------------------------------------------------------------------------------------------------------


def entry(second, event, **fields):
    return json.dumps({"at": f"2026-01-01T00:00:{second:02d}.000+00:00", "level": "info", "event": event, **fields})


@pytest.fixture
def folder(host, tmp_path):
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True)
    (logs / "controller.log").write_text(entry(1, "started") + "\n" + entry(3, "ready", model="tiny") + "\n")
    (logs / "model-tiny.log").write_text("llama: noise\n" + entry(2, "loading") + "\nabort: last words\n")
    (logs / "controller.log.1").write_text(entry(0, "rotated") + "\n")
    return logs


def test_logs_of_all_processes_are_merged_by_time(erllama, folder):
    lines = erllama("logs").out.splitlines()
    assert [line if line[0] != "{" else json.loads(line)["event"] for line in lines] == [
        "llama: noise",
        "started",
        "loading",
        "abort: last words",
        "ready",
    ]


def test_logs_of_one_process(erllama, folder):
    assert erllama("logs", "tiny", "-n", "1").out == "abort: last words\n"
    assert len(erllama("logs", "controller").out.splitlines()) == 2


def test_logs_as_json_gives_objects_only(erllama, folder):
    objects = [json.loads(line) for line in erllama("logs", "tiny", "--json").out.splitlines()]
    assert objects[-1] == {
        "at": "2026-01-01T00:00:02.000+00:00",
        "process": "tiny",
        "event": "text",
        "text": "abort: last words",
    }


def test_an_unknown_log_names_those_there_are(erllama, folder):
    ran = erllama("logs", "big")
    assert ran.code == 2
    assert "controller, tiny" in ran.err


def test_a_tail_survives_rotation_and_half_lines(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    with Tail(path) as tail:
        assert [line.text for line in merged([tail])] == ["one"]
        with path.open("a") as file:
            file.write("o\nthree\n")
        os.rename(path, tmp_path / "a.log.1")
        path.write_text("four\n")
        assert [line.text for line in merged([tail])] == ["two", "three", "four"]
        assert merged([tail]) == []


def test_a_character_that_comes_in_two_parts_stays_whole(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(b"caf\xc3")
    with Tail(path) as tail:
        assert merged([tail]) == []
        with path.open("ab") as file:
            file.write(b"\xa9\nnot text: \xff\n10 %\r20 %\r\n")
        assert [line.text for line in merged([tail])] == ["café", "not text: \ufffd", "10 %", "20 %"]


def test_a_file_that_is_rotated_away_while_it_is_opened_is_found_at_the_next_look(tmp_path, monkeypatch):
    path = tmp_path / "a.log"
    path.write_text("one\n")
    with Tail(path) as tail:
        with monkeypatch.context() as patch:
            patch.setattr(Tail, "_rotated", lambda tail: not path.unlink(missing_ok=True))
            assert merged([tail]) == []
        path.write_text("two\n")
        assert [line.text for line in merged([tail])] == ["two"]


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_cache_ls(erllama, host):
    host.segments = [segment(pinned=True), segment("cd" * 32)]
    lines = erllama("cache", "ls", "-n", "1").out.splitlines()
    assert lines[1].split("\t") == [
        "ab" * 6,
        "block",
        "tiny",
        "0-256",
        "3.0 MiB",
        "disk+ram",
        "3",
        "12s",
        "1h 01m",
        "cold",
        "pinned",
    ]
    ran = erllama("cache", "ls", "-n", "1", "--keys")
    assert "ab" * 32 in ran.out
    assert "1 of 2 segments" in ran.err


def test_cache_stats(erllama):
    out = erllama("cache", "stats").out
    assert "ram\tram\t256 MiB\t1.0 GiB\t25%\t2\t1.0 MiB\t-\t/dev/shm/erllama-0-0123456789ab" in out
    assert "tiny\t2\t512\t6.0 MiB\t4\t0\t1\t0\t0" in out
    assert "hits_exact\t4" in out


def test_cache_evict_wants_to_know_what(erllama, host):
    assert erllama("cache", "evict").code == 2
    assert erllama("cache", "evict", "tiny", "--all").code == 2
    assert erllama("cache", "evict", "tiny").out.splitlines()[1:] == [
        "dropped segments\t2",
        "freed\t6.0 MiB",
        "kept segments\t0",
    ]
    assert host.asked == [("cache_evict", "tiny", {"key": None, "everything": False, "pinned": False})]


def test_cache_verify_leaves_with_1_when_something_was_corrupt(erllama, host):
    assert erllama("cache", "verify").code == 0
    host.corrupt_files = 1
    assert erllama("cache", "verify").code == 1


def test_cache_gc_and_pins(erllama, host):
    assert json.loads(erllama("cache", "gc", "--json").out)["dropped_segments"] == 1
    assert erllama("cache", "pin", "ab").code == erllama("cache", "unpin", "ab").code == 0
    assert host.asked == [("cache_pin", "ab"), ("cache_unpin", "ab")]


# ---- tokens and vectors ----------------------------------------------------------------------------------------------


def test_tokenize(erllama):
    assert erllama("tokenize", "tiny", "Hi").out == "INDEX\tTOKEN\tTEXT\n0\t1\t'<s>'\n1\t72\t'H'\n2\t105\t'i'\n"
    assert erllama("tokenize", "tiny", "Hi", "--ids", "--no-special").out == "72 105\n"
    assert json.loads(erllama("tokenize", "tiny", "Hi", "--json").out) == {
        "tokens": [1, 72, 105],
        "pieces": ["<s>", "H", "i"],
    }


def test_embed(erllama):
    lines = erllama("embed", "tiny", "ab", "abcd").out.splitlines()
    assert [line.split("\t")[:3] for line in lines[1:]] == [["ab", "1.000", "3"], ["abcd", "0.976", "3"]]
    assert json.loads(erllama("embed", "tiny", "ab", "--json").out) == {"n_embd": 3, "vectors": [[2.0, 1.0, 0.0]]}


# ---- the live screen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 160])
def test_the_live_screen_fits(width):
    models = [
        tiny(),
        tiny(
            model_id="a-model-with-quite-a-long-name.q4",
            status="failed",
            last_failure="out of memory, 3 times in a row",
        ),
    ]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(FakeClient(*models).host_status(), width, trouble="no host answers"))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for word in (
        "2 models, 1 busy",
        "generating",
        "87.2",
        "25%",
        "75%",
        "812 MiB",
        "out of memory",
        "no host answers",
        "Ctrl-C",
    ):
        assert word in shown, word


def test_watching_a_pipe_prints_looks(erllama, host, monkeypatch):
    looks = []
    monkeypatch.setattr(
        "time.sleep",
        lambda _s: looks.append(1) or (setattr(host, "fail_with", KeyboardInterrupt()) if len(looks) == 2 else None),
    )
    ran = erllama("ps", "--watch", "--json")
    assert ran.code == 130
    assert [json.loads(line)["models"][0]["model_id"] for line in ran.out.splitlines()] == ["tiny", "tiny"]


# ---- help and versions -----------------------------------------------------------------------------------------------


def test_versions(erllama):
    names = [line.split(" ")[0] for line in erllama("--version").out.splitlines()]
    assert names == ["erllama-host", "protocol", "llama.cpp", "circus", "pyzmq"]


EVERY = [[function.__name__] for _, function in COMMANDS] + [
    [name, command] for _, name, _, commands in GROUPS for command, _ in commands
]


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_help_with_an_example(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words, "--help"]) == 0
    assert f"$ erllama {' '.join(words)}" in capsys.readouterr().out or words == ["embed"]


def test_the_list_of_commands_has_one_line_each_at_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for words in EVERY:
        assert f"│ {words[0]} " in shown


def test_the_build_of_llama_cpp_is_told():
    assert re.match(r"[0-9a-f]{7,}(-dirty)? \(ggml [\d.]+, llama-cpp-python [\d.]+\)\Z", llama_cpp_version())


def test_help_needs_none_of_the_heavy_libraries():
    """`erllama --help` and completion must feel instant: whatever is slow to import waits until a command runs."""
    code = (
        "import sys; from erllama_host.cli.main import main; assert main(['--help']) == 0; "
        "print([name for name in ('zmq', 'asyncio', 'psutil', 'msgspec', 'circus', 'llama_cpp', 'numpy') if name in sys.modules]); "
        "assert main(['--version']) == 0; print('llama_cpp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert "[]" in lines
    assert lines[-1] == "False"
