"""What the shell offers after Tab."""

import pytest

from erllama_host.cli.completion import complete_loaded_models, complete_model_files, complete_processes
from erllama_host.cli.main import main


@pytest.fixture
def run_dir(host, tmp_path, monkeypatch):
    models = tmp_path / "run" / "models"
    models.mkdir(parents=True)
    for name in ("tiny", "big"):
        (models / f"{name}.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    for name in ("tall.gguf", "notes.txt", ".hidden.gguf"):
        (tmp_path / "files" / name).write_text("")
    return tmp_path


def test_loaded_models(run_dir):
    assert complete_loaded_models("") == ["big", "tiny"]
    assert complete_loaded_models("t") == ["tiny"]


def test_logs(run_dir):
    assert complete_processes("c") == ["controller", "cache", "circusd"]
    assert complete_processes("ti") == ["tiny"]


@pytest.mark.parametrize("typed", ["files/", "./files/", "files/ta"])
def test_files_are_offered_as_they_were_typed(run_dir, typed):
    assert complete_model_files(typed) == [typed[: typed.rindex("/") + 1] + "tall.gguf"]


def test_models_and_directories_together(run_dir):
    assert complete_model_files("") == ["big", "tiny", "files/", "run/"]
    assert complete_model_files("no/such/place") == []


def test_the_shell_gets_them(run_dir, monkeypatch, capsys):
    monkeypatch.setenv("_ERLLAMA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "erllama unload t")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert main([]) == 0
    assert capsys.readouterr().out.split() == ["tiny"]
