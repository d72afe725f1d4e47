"""Up, down, and what survives: stale files, desired state, lazy and idle models, memory pressure, remote keys, by hand."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import zmq
from zmq.auth import load_certificate

from erllama_host.config import Config, Paths, parse_config
from erllama_host.errors import ConfigError, Forbidden, HostUnavailable, ModelLoading, ModelNotLoaded, NoMemory
from erllama_host.ids import new_routing_id
from erllama_host.supervisor import private_host, start_host, stop_host
from erllama_host.supervisor.handshake import ask_hello
from erllama_host.transport.curve import new_key
from tests.support.hosts import Host, directories, eventually, family_of, leftovers, running_host
from tests.support.wire import WireClient

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]


def start(paths: Paths, config_text: str = "", detach: bool = False) -> Host:
    paths.config_file.write_text(config_text, encoding="utf-8")
    return Host(paths, start_host(paths, parse_config(config_text), detach=detach))


def stop(host: Host) -> None:
    stop_host(host.paths, drain_s=0.0)
    host.running.wait(10)


def statuses(host: Host) -> dict[str, str]:
    with host.client() as client:
        models = client.call("list_models", timeout_s=5).get("models", [])
    return {each["model_id"]: each.get("status", "loading") for each in models}


def test_a_second_up_is_refused_and_stale_files_are_not_minded():
    with directories() as paths:
        paths.prepare()
        for name in ("host.pid", "circusd.pid"):
            (paths.run / name).write_text(str(os.getpid()))  # alive, but neither a parent nor a circusd
        (paths.run / "clients.sock").write_text("")
        host = start(paths, detach=True)
        with pytest.raises(ConfigError, match=f"already running.*pid {host.state().parent_pid}"):
            start_host(paths, Config(), detach=True)
        family = family_of(paths)
        stop_host(paths)
        assert leftovers(paths, family) == []
        assert stop_host(paths) is False
        assert ask_hello(paths.endpoint, 0.2) is None


START = """
import sys
from pathlib import Path
from erllama_host.config import Config, Paths
from erllama_host.errors import ConfigError
from erllama_host.supervisor import start_host
home, run, config = map(Path, sys.argv[1:])
try:
    start_host(Paths(home, run, config), Config(), detach=True)
    print("up")
except ConfigError as error:
    print(error.message)
"""


def test_of_several_ups_at_a_time_one_is_the_hosts_and_the_others_say_so():
    """Each looks, cleans and starts while the others do. Nobody takes another's answer for that of a host of his own."""
    with directories() as paths:
        command = [sys.executable, "-c", START, str(paths.home), str(paths.run), str(paths.config_file)]
        ups = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        said = sorted(up.communicate(timeout=120)[0].strip() for up in ups)
        assert said.count("up") == 1, said
        family = family_of(paths)
        assert sum("circus.circusd" in process.cmdline() for process in family) == 1
        stop_host(paths)
        assert leftovers(paths, family) == []


def test_models_come_back_after_down_and_up_and_unloaded_ones_do_not():
    text = '[models.fixed]\nbackend = "stub"\n[models.other]\nbackend = "stub"\n'
    with directories() as paths:
        host = start(paths, text)
        with host.client() as client:
            client.load_stub("mine", salt=7)
            client.load_stub("gone")
            client.call("unload", {"model_id": "gone"})
            client.call("unload", {"model_id": "other"})
            before = client.infer("mine", 6)
            os.kill(host.pid_of("controller"), signal.SIGKILL)
            eventually(lambda: set(statuses(host)) == {"fixed", "mine"}, "the same models after a crash")
        stop(host)
        host = start(paths, text)
        ready = {"fixed": "idle", "mine": "idle", "other": "idle"}
        eventually(lambda: statuses(host) == ready, "wanted and configured models are back")
        with host.client() as client:
            assert client.infer("mine", 6) == before
        stop(host)


def test_a_damaged_desired_state_is_set_aside():
    with directories() as paths:
        paths.prepare()
        paths.models_file.write_text('{"version": 1, "models": {"x"')
        host = start(paths)
        assert host.events("desired_state_damaged")
        assert [path.name.startswith("models.json.damaged-") for path in paths.home.glob("models.json*")] == [True]
        stop(host)


def test_one_model_that_cannot_load_does_not_hold_up_the_others():
    text = '[models.bad]\npath = "missing.gguf"\n[models.good]\nbackend = "stub"\n'
    with running_host(text) as host:
        eventually(lambda: statuses(host) == {"bad": "failed", "good": "idle"}, "one failed, one serves")
        with host.client() as client:
            assert "missing.gguf" in client.call("model_info", {"model_id": "bad"})["last_failure"]


def test_lazy_and_idle_models_are_loaded_by_requests():
    text = '[models.lazy]\nbackend = "stub"\nlazy = true\nkeep_alive_s = 0.5\n'
    with running_host(text) as host, host.client() as client:
        assert statuses(host) == {"lazy": "away"}
        with pytest.raises(ModelLoading):
            client.infer("lazy", 1)
        eventually(lambda: len(client.infer("lazy", 3)) == 3, "the request brings it")
        eventually(lambda: statuses(host) == {"lazy": "away"}, "it goes when nobody uses it")
        eventually(lambda: len(client.infer("lazy", 3)) == 3, "and comes back")


def test_memory_pressure_lets_idle_models_go(tmp_path):
    memory = tmp_path / "memory.json"
    memory.write_text(json.dumps([{"total_bytes": 1000, "used_bytes": 500}]))
    text = f'[host]\nmemory_file = "{memory}"\nmemory_interval_s = 0.2\n'
    with running_host(text) as host, host.client() as client:
        client.load_stub("less", options={"priority": 1})
        client.load_stub("more", options={"priority": 9})
        memory.write_text(json.dumps([{"total_bytes": 1000, "used_bytes": 990}]))
        eventually(lambda: statuses(host)["less"] == "away", "the less valuable model is let go")
        memory.write_text(json.dumps([{"total_bytes": 1000, "used_bytes": 100}]))
        eventually(lambda: len(client.infer("less", 2)) == 2, "it comes back with a request")


def test_a_load_that_cannot_fit_is_refused_before_it_starts(tmp_path):
    memory, model = tmp_path / "memory.json", tmp_path / "model.gguf"
    memory.write_text(json.dumps([{"total_bytes": 100 << 20, "used_bytes": 0}]))
    model.write_bytes(b"GGUF" + bytes(1000))
    with running_host(f'[host]\nmemory_file = "{memory}"\n') as host, host.client() as client:
        with pytest.raises(NoMemory) as caught:
            client.call("load_model", {"path": str(model)})
        assert caught.value.details["free_bytes"] == 100 << 20
        assert statuses(host) == {}


def test_a_host_going_down_refuses_new_work():
    with running_host() as host, host.client() as client:
        client.load_stub("tiny")
        client.call("drain", {"timeout_s": 0.0})
        assert client.call("hello")["draining"] is True
        with pytest.raises(HostUnavailable):
            client.infer("tiny", 1)
        with pytest.raises(HostUnavailable):
            client.load_stub("other")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def remote_client(endpoint: str, secret_file: Path, server_file: Path) -> WireClient:
    """A client over tcp with these keys."""
    public, secret = load_certificate(secret_file)
    client = WireClient.__new__(WireClient)
    client._context, client.seen = zmq.Context(), []
    client.socket = client._context.socket(zmq.DEALER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.ROUTING_ID, new_routing_id()),
        (zmq.CURVE_PUBLICKEY, public),
        (zmq.CURVE_SECRETKEY, secret),
        (zmq.CURVE_SERVERKEY, load_certificate(server_file)[0]),
    ):
        client.socket.setsockopt(option, value)
    client.socket.connect(endpoint)
    return client


def test_remote_clients_need_a_key_and_have_a_role(tmp_path):
    endpoint, keys = f"tcp://127.0.0.1:{free_port()}", tmp_path / "keys"
    user, admin = new_key(keys, "ann", "user"), new_key(keys, "root", "admin")
    stranger = new_key(tmp_path / "others", "eve", "admin")
    text = f'[remote]\nlisten = "{endpoint}"\nkeys_dir = "{keys}"\n[host]\nmodel_dirs = ["{tmp_path}/models"]\n'
    with running_host(text) as host, host.client() as local:
        local.load_stub("tiny")
        with remote_client(endpoint, user.secret_file, user.server_file) as client:
            assert client.call("hello")["pid"] > 0
            assert len(client.infer("tiny", 4)) == 4
            for kind, body, model in (("unload", {"model_id": "tiny"}, ""), ("evict", {}, "tiny")):
                with pytest.raises(Forbidden, match="admin"):
                    client.call(kind, body, model)
        with remote_client(endpoint, admin.secret_file, admin.server_file) as client:
            with pytest.raises(Forbidden, match="model_dirs"):
                client.call("load_model", {"path": "/etc/passwd"})
            with pytest.raises(Forbidden, match="model_dirs"):
                client.call("load_adapter", {"path": f"{tmp_path}/models/../secret.gguf"}, "tiny")
            client.call("unload", {"model_id": "tiny"})
            with pytest.raises(ModelNotLoaded):
                client.call("status", model="tiny")
        with remote_client(endpoint, stranger.secret_file, user.server_file) as client, pytest.raises(TimeoutError):
            client.call("hello", timeout_s=1.5)


def test_circusd_by_hand_and_circusctl():
    with directories() as paths:
        environment = {**os.environ, **paths.environment(), "PYTHONPATH": str(ROOT)}
        tool = [sys.executable, "-m"]
        process = subprocess.Popen(
            [*tool, "circus.circusd", "circus.ini"], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )
        try:
            eventually(lambda: ask_hello(paths.endpoint, 0.5), "the host answers")
            host = Host(paths, None)
            with host.client() as client:
                client.load_stub("tiny")

            def ctl(*words: str) -> str:
                command = [*tool, "circus.circusctl", "--endpoint", paths.ipc("circus.sock"), *words]
                return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout

            assert "model:tiny" in ctl("list")
            assert "model:tiny: active" in ctl("status")
            ctl("reloadconfig")
            eventually(lambda: statuses(host) == {"tiny": "idle"}, "reloadconfig is made good")
            family = family_of(paths)
            ctl("quit")
            process.wait(60)
            eventually(lambda: not [each for each in family if each.is_running()], "all have ended")
        finally:
            process.terminate()
            process.wait(60)


def test_a_bad_configuration_stops_circusd_by_hand_at_once():
    with directories() as paths:
        paths.config_file.write_text("[host]\nmemory_low = 7\n")
        environment = {**os.environ, **paths.environment(), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "circus.circusd", "circus.ini"]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 72
        assert "host.memory_low" in ended.stderr


def test_private_host_leaves_nothing():
    with private_host(config_text='[models.tiny]\nbackend = "stub"\n') as running:
        base = running.paths.run.parent
        host = Host(running.paths, running)
        eventually(lambda: statuses(host) == {"tiny": "idle"}, "its model serves")
        family = family_of(running.paths)
        assert len(family) >= 4
    assert not base.exists()
    assert not [each for each in family if each.is_running()]
