"""Kills of every kind: what the host promises about each, with real processes."""

import os
import signal

import psutil
import pytest

from erllama_host import Client
from erllama_host.errors import ConfigError, ErllamaError, ModelFailed, ModelLoadFailed
from tests.support.hosts import Host, eventually, running_host
from tests.support.wire import WireClient

pytestmark = pytest.mark.process


def info(client: WireClient, model: str) -> dict:
    return client.call("model_info", {"model_id": model}, timeout_s=5)


def wait_status(host: Host, model: str, status: str, other_than: int = -1) -> dict:
    """Wait until `model` has `status`, under another pid than `other_than`."""

    def look() -> dict | None:
        with host.client() as client:
            found = info(client, model)
        return found if found["status"] == status and found.get("pid", 0) != other_than else None

    return eventually(look, f"{model} is {status}")


def test_killed_worker_comes_back_and_others_do_not_notice():
    with running_host() as host, host.client() as client:
        first = client.load_stub("first")["pid"]
        other = client.load_stub("other")["pid"]
        os.kill(first, signal.SIGKILL)
        back = wait_status(host, "first", "idle", other_than=first)
        assert back["restarts"] == 1
        assert "signal 9" in back["last_failure"]
        assert len(client.infer("first", 3)) == 3
        assert info(client, "other")["pid"] == other
        ended = eventually(lambda: host.events("crashed"), "the end is in the journal")
        assert "signal 9" in ended[0]["fields"]["reason"]


def test_crash_loop_is_given_up_and_restart_clears_it():
    with running_host() as host, host.client() as client:
        pid = client.load_stub("bad", options={"max_restarts": 1, "within_s": 600.0})["pid"]
        os.kill(pid, signal.SIGKILL)
        pid = wait_status(host, "bad", "idle", other_than=pid)["pid"]
        os.kill(pid, signal.SIGKILL)
        failed = wait_status(host, "bad", "failed")
        assert "given up" in failed["last_failure"] and "signal 9" in failed["last_failure"]
        assert "resident_bytes" not in failed, "there is no process that could take any"
        assert [event["model"] for event in host.events("gave_up")] == ["bad"]
        with pytest.raises(ModelFailed) as caught:
            client.infer("bad", 1)
        assert caught.value.details["reason"] == "crashed"
        controller = host.pid_of("controller")
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: host.pid_of("controller") not in (0, controller), "another controller serves")
        assert "signal 9" in wait_status(host, "bad", "failed")["last_failure"], "it is not tried again by that"
        assert client.call("restart", {"model_id": "bad"})["status"] == "idle"
        assert len(client.infer("bad", 2)) == 2


def test_load_failures_are_not_retried():
    with running_host() as host, host.client() as client:
        with pytest.raises(ModelLoadFailed, match="no such tensor"):
            client.load_stub("broken", fail_load="no such tensor")
        with pytest.raises(ModelLoadFailed, match="load_timeout_s"):
            client.load_stub("slow", hang_in_load=True, options={"load_timeout_s": 1.0})
        assert client.call("list_models") == {}
        assert set(statuses(host)) == {"cache", "controller"}
        assert client.load_stub("broken")["status"] == "idle"


def statuses(host: Host) -> dict[str, str]:
    """What circusd itself says."""
    from circus.client import CircusClient

    client = CircusClient(endpoint=host.paths.ipc("circus.sock"), timeout=10)
    try:
        return client.send_message("status")["statuses"]
    finally:
        client.stop()


def test_stopped_worker_and_stopped_controller_are_replaced():
    with running_host("[host]\nheartbeat_timeout_s = 3.0\n") as host, host.client() as client:
        worker = client.load_stub("tiny")["pid"]
        os.kill(worker, signal.SIGSTOP)
        back = wait_status(host, "tiny", "idle", other_than=worker)
        assert "hung" in back["last_failure"]
        controller = host.pid_of("controller")
        os.kill(controller, signal.SIGSTOP)
        eventually(lambda: host.pid_of("controller") not in (0, controller), "another controller serves")
        assert wait_status(host, "tiny", "idle")["pid"] == back["pid"]


def test_killed_controller_adopts_what_runs():
    with running_host() as host, host.client() as client:
        first = client.load_stub("tiny")["pid"]
        os.kill(first, signal.SIGKILL)  # leaves a note, which the next controller must not take for news
        worker = wait_status(host, "tiny", "idle", other_than=first)["pid"]
        controller = host.pid_of("controller")
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: host.pid_of("controller") not in (0, controller), "another controller serves")
        assert wait_status(host, "tiny", "idle")["pid"] == worker
        assert len(host.events("crashed")) == 1
        with host.client() as again:
            assert len(again.infer("tiny", 4)) == 4


def test_killed_cache_daemon_comes_back():
    with running_host() as host, host.client() as client:
        worker = client.load_stub("tiny")["pid"]
        daemon = eventually(lambda: host.pid_of("cache"), "the daemon runs")
        os.kill(daemon, signal.SIGKILL)
        assert len(client.infer("tiny", 4)) == 4
        eventually(lambda: host.pid_of("cache") not in (0, daemon), "another daemon runs")
        eventually(lambda: client.call("counters")["counters"]["cache_available"] == 1, "it answers")
        assert info(client, "tiny")["pid"] == worker


def test_killed_circusd_is_started_again_with_its_models():
    with running_host() as host, host.client() as client:
        worker = client.load_stub("tiny")["pid"]
        state = host.state()
        os.kill(state.circusd_pid, signal.SIGKILL)
        eventually(lambda: host.state().circusd_pid not in (0, state.circusd_pid), "another circusd runs")
        assert host.state().parent_pid == state.parent_pid
        assert wait_status(host, "tiny", "idle", other_than=worker)
        eventually(lambda: not psutil.pid_exists(worker), "the old worker has left")
        with host.client() as again:
            assert len(again.infer("tiny", 4)) == 4


def circusctl(host: Host, *words: str) -> dict:
    from circus.client import CircusClient

    client = CircusClient(endpoint=host.paths.ipc("circus.sock"), timeout=30)
    try:
        properties = {"name": words[1], "waiting": True} if len(words) > 1 else {"waiting": True}
        return client.send_message(words[0], **properties)
    finally:
        client.stop()


def test_operators_may_use_circusctl():
    with running_host() as host, host.client() as client:
        first = client.load_stub("tiny")["pid"]
        circusctl(host, "restart", "model:tiny")
        second = wait_status(host, "tiny", "idle", other_than=first)["pid"]
        eventually(lambda: len(host.events("stopped")) == 1, "the journal says that it was asked to stop")
        circusctl(host, "stop", "model:tiny")
        assert "stopped in the supervisor" in wait_status(host, "tiny", "failed")["last_failure"]
        circusctl(host, "start", "model:tiny")
        third = wait_status(host, "tiny", "idle", other_than=second)["pid"]
        circusctl(host, "rm", "model:tiny")
        wait_status(host, "tiny", "idle", other_than=third)
        assert host.events("crashed") == host.events("died") == []


def test_crash_before_hello_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif sys.orig_argv[-2:] == ['workers', 'odd']:\n    os.write(2, b'no luck\\n')\n    os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with running_host() as host, host.client() as client:
        ref = client.send("load_model", {"model_id": "odd", "config": {"backend": "stub"}})
        with pytest.raises(ErllamaError, match=r"given up: .*SIGABRT.*3 times in a row.*no luck"):
            client.answer(ref)
        assert client.call("list_models") == {}


def test_an_address_space_that_cannot_be_enough_is_named():
    with running_host() as host, host.client() as client:
        config = {"backend": "stub", "address_space_bytes": 1 << 20}
        ref = client.send("load_model", {"model_id": "odd", "config": config})
        with pytest.raises(ConfigError, match=r"raise address_space_bytes \(now 1048576\)"):
            client.answer(ref)
        assert len(host.events("failed")) == 1, "not tried again"


def test_a_restart_does_not_cut_streams():
    with running_host() as host, Client(host.endpoint) as client:
        model = client.load_model(model_id="tiny", backend="stub", stub={"token_ms": 10.0})
        with model.infer("hello", max_tokens=500, ignore_eos=True) as stream:
            next(stream)
            assert client.restart("tiny").status in ("idle", "prefilling", "generating"), (
                "the stream may be back already"
            )
            done = stream.result()
        assert (len(done.generated), done.cancelled, done.resumes) == (500, False, 1)
