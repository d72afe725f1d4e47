"""run and chat: answers as they come, Ctrl-C, conversations."""

import io
import json
import sys

import pytest

from erllama_host import supervisor
from erllama_host.cli import chat as chat_module
from erllama_host.cli.answering import show, stats_line
from erllama_host.client.results import StreamStats
from erllama_host.errors import ModelLoadFailed, QueueFull, WorkerDied
from erllama_host.protocol.inference import CacheReport
from tests.support.fake_client import FakeStream, pieces, tiny


class Terminal(io.StringIO):
    """Text that believes it is a terminal."""

    def isatty(self):
        return True


def test_run_streams_the_answer(erllama, host):
    host.answers = [FakeStream(pieces("Blue", " light", " scatters."))]
    ran = erllama(
        "run", "tiny", "Why is the sky blue?", "-n", "9", "-t", "0.5", "--seed", "7", "--stop", "x", "--stats"
    )
    assert (ran.code, ran.out) == (0, "Blue light scatters.\n")
    kind, messages, options = host.asked[0]
    assert kind == "chat_stream"
    assert messages == [{"role": "user", "content": "Why is the sky blue?"}]
    assert options["max_tokens"] == 9
    assert (options["temperature"], options["seed"], options["stop"], options["system"]) == (0.5, 7, ["x"], None)
    assert (
        ran.err
        == "12 prompt tokens, 3 generated · 55.5 tok/s · first token after 31 ms · cache exact: 11 tokens read · ended by stop\n"
    )


def test_run_raw_continues_the_text(erllama, host):
    host.answers = [FakeStream(pieces("there was"))]
    assert erllama("run", "tiny", "--raw", "Once").out == "there was\n"
    assert host.asked[0][:2] == ("infer", "Once")


def test_a_model_without_a_template_continues_the_text(erllama, host):
    host.infos["tiny"] = tiny(has_chat_template=False)
    host.answers = [FakeStream(pieces("ok"))]
    erllama("run", "tiny", "Once", "--system", "Be brief.")
    assert host.asked[0][:2] == ("infer", "Be brief.\n\nOnce")


def test_run_reads_the_prompt_from_stdin(erllama, host, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    host.answers = [FakeStream(pieces("ok"))]
    erllama("run", "tiny", "--raw")
    assert host.asked[0][1] == "from a pipe"


def test_run_json(erllama, host):
    host.answers = [FakeStream([*pieces("hm", channel="thinking"), *pieces("ok")])]
    ran = erllama("run", "tiny", "x", "--json")
    body = json.loads(ran.out)
    assert (body["text"], body["thinking"], body["finish_reason"]) == ("ok", "hm", "stop")
    assert body["stats"]["cache"]["read_tokens"] == 11


def test_ctrl_c_cancels_the_answer_and_keeps_what_came(erllama, host):
    stream = FakeStream(pieces("one", "two", "three"), interrupt_at=2)
    host.answers = [stream]
    ran = erllama("run", "tiny", "x")
    assert (ran.code, ran.out) == (130, "onetwo\n")
    assert stream.cancelled


def test_thinking_is_dim_on_a_terminal_and_left_out_when_piped():
    stream = [*pieces("hm", channel="thinking"), *pieces("ok")]
    terminal, pipe = Terminal(), io.StringIO()
    show(FakeStream(stream), terminal)
    show(FakeStream(stream), pipe)
    assert terminal.getvalue() == "\x1b[2mhm\x1b[0m\nok\n"
    assert pipe.getvalue() == "ok\n"


def test_ctrl_c_while_a_piece_is_written_cancels_too():
    class SlowTerminal(Terminal):
        def write(self, text):
            if text == "two":
                raise KeyboardInterrupt
            return super().write(text)

    stream, terminal = FakeStream(pieces("one", "two", "three")), SlowTerminal()
    answer = show(stream, terminal)
    assert stream.cancelled and answer.interrupted and terminal.getvalue() == "one\n"
    assert answer.text == "onetwo", "it belongs to the conversation"


def test_figures_tell_of_resumes_and_misses():
    cold = StreamStats(finish_reason="stop", resumes=2, cache=CacheReport(kind="cold", miss_reason="evicted"))
    assert stats_line(cold) == "0 prompt tokens, 0 generated · cache cold (evicted) · resumed 2 times · ended by stop"
    cut_off = StreamStats(finish_reason="cancelled", cancel_reason="deadline")
    assert stats_line(cut_off).endswith("cache cold · ended by deadline")


def test_run_without_a_file_and_without_a_host_says_so(erllama, tmp_path):
    ran = erllama("run", str(tmp_path / "missing.gguf"), "x")
    assert ran.code == 4
    assert "there is no file" in ran.err


def test_a_file_is_loaded_for_the_answer_and_unloaded_again(erllama, host, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "host_state", lambda _paths: supervisor.HostState(parent_pid=1))
    path = tmp_path / "big.gguf"
    host.answers = [FakeStream(pieces("ok"))]
    assert erllama("run", str(path), "Hi", "-o", "n_ctx=512").out == "ok\n"
    assert host.asked[0] == ("load_model", str(path), None, {"n_ctx": 512})
    assert list(host.infos) == ["tiny"]


@pytest.mark.parametrize(("ending", "code"), [(KeyboardInterrupt(), 130), (ModelLoadFailed("no tensors"), 4)])
def test_a_load_that_is_interrupted_is_undone(erllama, host, tmp_path, monkeypatch, ending, code):
    """Else the model would stay on the host, and come back at its next start."""
    monkeypatch.setattr(supervisor, "host_state", lambda _paths: supervisor.HostState(parent_pid=1))
    host.load_ends_with = ending
    assert erllama("run", str(tmp_path / "big.gguf"), "Hi").code == code
    assert list(host.infos) == ["tiny"]


def test_an_endpoint_in_the_environment_is_asked_instead_of_a_private_host(erllama, host, tmp_path, monkeypatch):
    monkeypatch.setenv("ERLLAMA_ENDPOINT", "ipc:///elsewhere/clients.sock")
    host.answers = [FakeStream(pieces("ok"))]
    assert erllama("run", str(tmp_path / "big.gguf"), "Hi").out == "ok\n"
    assert host.asked[0][0] == "load_model"


def test_a_file_that_is_loaded_already_is_used_as_it_is(erllama, host, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "host_state", lambda _paths: supervisor.HostState(parent_pid=1))
    path = tmp_path / "big.gguf"
    host.infos["big"] = tiny(model_id="big", path=str(path))
    host.answers = [FakeStream(pieces("ok"))]
    assert erllama("run", str(path), "Hi").out == "ok\n"
    assert [kind for kind, *_ in host.asked] == ["chat_stream"]
    assert set(host.infos) == {"tiny", "big"}


# ---- chat ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chat(erllama, host, monkeypatch):
    """`chat(["a line", ...], stream, ...)` runs a conversation whose lines come from stdin."""

    def run(lines, *answers, options=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        host.answers = list(answers)
        return erllama("chat", "tiny", *options)

    return run


def test_chat_sends_the_whole_conversation(chat, host):
    ran = chat(
        ["Hi", "And now?"], FakeStream(pieces("Hello")), FakeStream(pieces("Bye")), options=["--system", "Be kind."]
    )
    assert (ran.code, ran.out) == (0, "Hello\nBye\n")
    assert host.asked[1][1] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And now?"},
    ]
    assert host.asked[1][2]["system"] == "Be kind."


def test_chat_goes_on_after_ctrl_c(chat, host):
    ran = chat(["Hi", "More"], FakeStream(pieces("a", "b", "c"), interrupt_at=1), FakeStream(pieces("ok")))
    assert ran.code == 0
    assert ran.out == "a\nok\n"
    assert "(stopped)" in ran.err
    assert host.asked[1][1][1] == {"role": "assistant", "content": "a"}


def test_chat_takes_a_question_back_after_an_error(chat, host):
    ran = chat(["Hi", "Hi"], QueueFull("the queue is full"), FakeStream(pieces("ok")))
    assert ran.code == 0
    assert "the queue is full (try again)" in ran.err
    assert host.asked[1][1] == [{"role": "user", "content": "Hi"}]


def test_chat_commands(chat, host):
    ran = chat(
        [
            "Hi",
            "/retry",
            "/stats",
            "/history",
            "/system Be brief.",
            "/clear",
            "/nope",
            "/help",
            "So?",
            "/exit",
            "never read",
        ],
        FakeStream(pieces("one")),
        FakeStream(pieces("two")),
        FakeStream(pieces("three")),
    )
    assert ran.code == 0
    assert ran.out == "one\ntwo\nuser: Hi\nassistant: two\nthree\n"
    assert "cache exact: 11 tokens read" in ran.err
    assert "/nope is no command" in ran.err
    assert host.asked[2][1] == [{"role": "user", "content": "So?"}]
    assert host.asked[2][2]["system"] == "Be brief."


def test_a_line_may_go_on_in_the_next(chat, host):
    chat(["one\\", "two"], FakeStream(pieces("ok")))
    assert host.asked[0][1][0]["content"] == "one\ntwo"


def test_a_failed_model_ends_no_chat(chat):
    ran = chat(["Hi"], WorkerDied("the process was killed"))
    assert ran.code == 0
    assert "the process was killed" in ran.err


def test_history_is_kept_private(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal())
    reader = chat_module.LineReader(tmp_path / "chat_history")
    reader.save_history()
    assert (tmp_path / "chat_history").stat().st_mode & 0o777 == 0o600
