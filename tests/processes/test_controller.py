"""The controller with real workers of the stub backend: load, use, unload, lists, errors, events."""

import pytest

from erllama_host.errors import AlreadyLoaded, ModelNotLoaded
from tests.support.hosts import running_host

pytestmark = pytest.mark.process


def test_load_use_list_unload():
    with running_host() as host, host.client() as client:
        info = client.load_stub("tiny")
        assert info["model_id"] == "tiny" and info["status"] == "idle" and info["pid"] > 0
        assert len(client.infer("tiny", 5)) == 5
        assert [each["model_id"] for each in client.call("list_models")["models"]] == ["tiny"]
        assert client.call("models")["pids"] == {"tiny": [info["pid"]]}
        with pytest.raises(AlreadyLoaded):
            client.load_stub("tiny")
        client.call("unload", {"model_id": "tiny"})
        assert client.call("list_models") == {}
        with pytest.raises(ModelNotLoaded):
            client.call("status", model="tiny")
        assert client.load_stub("tiny")["pid"] != info["pid"]
