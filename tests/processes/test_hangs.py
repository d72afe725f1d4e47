"""Steps and loads that never end, in real processes: killed with the reason, told, started anew; streams go on."""

import pytest

from erllama_host import Client
from erllama_host.errors import ModelFailed, WorkerDied
from tests.support.hosts import eventually, running_host

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

HANG_TIMEOUT_S = 4.0
"""Far above what a step of the stub takes on any machine, so that only the scripted hangs count."""


@pytest.fixture(scope="module")
def host():
    with running_host() as host:
        yield host


def load(client, model_id, **stub):
    """`stream_interval_ms`: what waits for company when a step hangs is computed again, which is right, but not countable."""
    options = {"hang_timeout_s": HANG_TIMEOUT_S, "stream_interval_ms": 0.0, "embeddings": True}
    return client.load_model(model_id=model_id, backend="stub", stub=stub, **options)


def told(host, model_id):
    """Names of the model's events since it was loaded first, and the reasons among them."""
    names = ("killed", "hung", "crashed", "died", "gave_up", "failed")
    events = [event for name in names for event in host.events(name) if event.get("model") == model_id]
    return [event["name"] for event in events], {
        event["fields"]["reason"] for event in events if "reason" in event["fields"]
    }


def test_a_decode_that_never_returns_is_ended_and_its_stream_goes_on(host):
    with Client(host.endpoint) as client:
        whole = load(client, "sound").complete("hello", max_tokens=20)
        model = load(client, "hangs", hang_after_tokens=12)
        pid = model.info().pid
        answer = model.complete("hello", max_tokens=20)
        assert (answer.text, answer.generated, answer.stats.resumes) == (whole.text, whole.generated, 1)
        info = model.info()
        assert info.pid != pid and info.restarts == 1
        assert info.last_failure.startswith("hung: no progress for ") and "(limit 4 s)" in info.last_failure
        assert told(host, "hangs") == (["killed", "hung"], {info.last_failure})
        assert client.model("sound").info().restarts == 0, "nobody else noticed"


def test_a_stream_that_must_not_be_resumed_ends_with_the_hang(host):
    with Client(host.endpoint, max_resumes=0) as client:
        model = load(client, "once", hang_after_tokens=3)
        with pytest.raises(WorkerDied) as caught:
            model.complete("hello", max_tokens=20)
        assert caught.value.retryable
        eventually(lambda: model.info().status == "idle", "the next worker serves")
        assert len(model.complete("hello", max_tokens=2).generated) == 2


def test_an_embedding_that_never_returns_is_ended_and_asked_for_again(host):
    """No request is running: the engine has work all the same."""
    with Client(host.endpoint) as client:
        expected = load(client, "embeds").embed("hello")
        model = load(client, "stuck", hang_after_tokens=3)
        model.complete("hello", max_tokens=3)
        assert model.embed("hello") == expected
        assert model.info().restarts == 1 and model.info().last_failure.startswith("hung: no progress")


def test_a_load_that_hangs_at_every_start_is_given_up_and_holds_nobody_up():
    stuck = '[models.stuck]\nbackend = "stub"\nload_timeout_s = 1.0\npriority = 9\nstub = { hang_in_load = true }\n'
    sound = '[models.sound]\nbackend = "stub"\n'
    with running_host("[host]\nload_at_once = 2\n" + stuck + sound) as host, Client(host.endpoint) as client:
        assert len(client.model("sound").complete("hello", max_tokens=3).generated) == 3
        failed = eventually(
            lambda: (info := client.model("stuck").info()).status == "failed" and info, "it is given up"
        )
        assert "not loaded within load_timeout_s (1 s)" in failed.last_failure
        assert "3 times in a row before it was ready" in failed.last_failure
        names, _ = told(host, "stuck")
        assert names == ["killed"] * 3 + ["hung"] * 3 + ["gave_up"]
        with pytest.raises(ModelFailed) as caught:
            client.model("stuck").complete("hello", max_tokens=1)
        assert caught.value.details["reason"] == "hung"
