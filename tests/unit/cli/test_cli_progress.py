"""Progress goes to the terminal behind stderr, and nowhere else."""

import io
import sys

from erllama_host.cli.progress import amount_text, file_size, load_bar, waiting
from erllama_host.protocol.calls import LoadProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_amounts():
    assert amount_text(0.0, 100) == ""
    assert amount_text(0.5, 140 << 20) == "70.0 MiB of 140 MiB"
    assert amount_text(0.5, 0) == "50%"


def test_size_of_a_file_that_is_not_here(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 7)
    assert (file_size(tmp_path / "a"), file_size(tmp_path / "b"), file_size(None)) == (7, 0, 0)


def test_nothing_is_shown_without_a_terminal(capsys):
    with waiting("loading") as say, load_bar("a.gguf", 100) as on_progress:
        say("more")
        on_progress(LoadProgress(model_id="a", phase="weights", fraction=0.5))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_terminal_shows_phase_and_bytes(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    with load_bar("a.gguf", 140 << 20) as on_progress:
        on_progress(LoadProgress(model_id="a", phase="weights", fraction=0.5))
    assert "a.gguf: weights" in terminal.getvalue()
    assert "70.0 MiB of 140 MiB" in terminal.getvalue()
