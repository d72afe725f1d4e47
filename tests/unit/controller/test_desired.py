"""The desired state on disk."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama_host.config import ModelConfig, SpecAdapter
from erllama_host.controller.desired import DesiredFile, Wanted

STUB = ModelConfig(backend="stub")


def read(path, up_id="up"):
    file = DesiredFile(path)
    return file, file.load(up_id)


def test_what_is_wanted_is_there_again(tmp_path):
    file, _ = read(tmp_path / "models.json")
    adapter = SpecAdapter(handle="a", path="/a.gguf", scale=0.5)
    file.want("tiny", Wanted(config=STUB, adapters=[adapter]))
    assert file.take_auto_number() == 1
    again, aside = read(tmp_path / "models.json")
    assert aside is None
    assert again.state.models == {"tiny": Wanted(config=STUB, adapters=[adapter])}
    assert again.take_auto_number() == 2
    again.forget("tiny", configured=False)
    assert read(tmp_path / "models.json")[0].state.models == {}


def test_an_unloaded_configured_model_stays_away_until_the_next_up(tmp_path):
    file, _ = read(tmp_path / "models.json", "first")
    file.forget("fixed", configured=True)
    assert read(tmp_path / "models.json", "first")[0].state.unloaded == ["fixed"]
    assert read(tmp_path / "models.json", "second")[0].state.unloaded == []
    file.want_configured("fixed", [])
    assert file.state.unloaded == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"models": {"x": {}}}', "\x00\xff"])
def test_a_file_that_cannot_be_read_is_kept_aside(tmp_path, text):
    path = tmp_path / "models.json"
    path.write_text(text)
    file, aside = read(path)
    assert aside is not None and aside.read_text() == text and not path.exists()
    assert file.state.models == {}
    file.want("tiny", Wanted(config=STUB))
    assert json.loads(path.read_text())["models"].keys() == {"tiny"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["want", "forget", "number"]), st.sampled_from("abc")), max_size=10))
def test_the_file_is_always_what_the_state_is(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("d") / "models.json"
    file, _ = read(path)
    numbers = []
    for what, model_id in steps:
        if what == "want":
            file.want(model_id, Wanted(config=STUB))
        elif what == "forget":
            file.forget(model_id, configured=False)
        else:
            numbers.append(file.take_auto_number())
        if path.exists():
            assert read(path)[0].state == file.state
    assert numbers == sorted(set(numbers))
