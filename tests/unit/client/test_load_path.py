"""What `load_model` takes as a path."""

from pathlib import Path

import pytest

from erllama_host.client.host_calls import load_model
from erllama_host.errors import InvalidRequest


@pytest.mark.parametrize("path", [None, b"/models/x.gguf", 7])
def test_what_is_no_path_is_named(path: object) -> None:
    with pytest.raises(InvalidRequest, match="path must be a string or a path") as caught:
        load_model(path, None, {}, True, True)  # type: ignore[arg-type]
    assert caught.value.details["field"] == "path"


def test_a_local_path_becomes_absolute_and_a_remote_one_stays() -> None:
    assert load_model("x.gguf", None, {}, True, True).body.path == str(Path.cwd() / "x.gguf")
    assert load_model(Path("x.gguf"), None, {}, False, True).body.path == "x.gguf"
    assert load_model("", None, {"backend": "stub"}, True, True).body.path == ""
