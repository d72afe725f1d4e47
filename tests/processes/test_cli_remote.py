"""Keys, tcp and roles, from the command line to a host that listens."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from erllama_host.config import Paths
from erllama_host.supervisor.stop import stop_host
from tests.support.command_line import ROOT, Shell
from tests.support.hosts import eventually

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def shell():
    base = Path(tempfile.mkdtemp(prefix="ec-"))
    paths = Paths(base / "home", base / "run", base / "erllama.toml")
    yield Shell(paths)
    stop_host(paths, now=True)
    shutil.rmtree(base)


def test_a_key_opens_what_its_role_allows_until_it_is_removed(shell):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    shell.paths.config_file.write_text(f'[remote]\nlisten = "{endpoint}"\n\n[models.one]\nbackend = "stub"\n')
    keys = {
        role: json.loads(shell.run("keys", "new", role, "--role", role, "--json").stdout) for role in ("user", "admin")
    }
    assert [key["role"] for key in shell.json("keys", "list")["keys"]] == ["admin", "user"]
    shell.run("up", "-d", "--wait")

    def remote(role, *words, code=0):
        made = keys[role]
        options = ["--endpoint", endpoint, "--key", made["secret_key_file"], "--server-key", made["server_key_file"]]
        return shell.run(*options, *words, code=code)

    assert "one" in remote("user", "ps").stdout
    assert remote("user", "run", "one", "--raw", "Hi", "-n", "5").stdout.strip()
    assert "admin" in remote("user", "restart", "one", code=1).stderr
    remote("admin", "restart", "one")
    assert "key_file" in shell.run("--endpoint", endpoint, "ps", code=2).stderr  # tcp without keys

    secret = Path(keys["user"]["secret_key_file"])
    secret.chmod(0o644)
    assert f"chmod 600 {secret}" in remote("user", "ps", code=2).stderr
    secret.chmod(0o600)

    kept = shell.paths.home.parent / "kept.key_secret"
    shutil.copy(keys["user"]["secret_key_file"], kept)
    shell.run("keys", "remove", "user")
    keys["user"]["secret_key_file"] = str(kept)
    assert "refuses this key" in remote("user", "ps", code=3).stderr
    assert "one" in remote("admin", "ps").stdout
    shell.run("down")


def test_tcp_without_a_client_that_has_a_key_is_refused_at_start_and_minded_no_more_once_it_runs(shell):
    shell.paths.config_file.write_text(f'[remote]\nlisten = "tcp://127.0.0.1:{free_port()}"\n')
    assert "erllama keys new" in shell.run("up", "-d", code=2).stderr
    by_hand = [sys.executable, "-m", "circus.circusd", "circus.ini"]
    ended = subprocess.run(by_hand, cwd=ROOT, env=shell.environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 72 and "erllama keys new" in ended.stderr

    shell.run("keys", "new", "ann")
    shell.run("up", "-d")
    shell.run("keys", "remove", "ann")

    def pid_of(role):
        return next(each["pid"] for each in shell.json("status")["processes"] if each["role"] == role)

    for role in ("controller", "circusd"):
        victim = pid_of(role)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda role=role, victim=victim: pid_of(role) != victim, "the host goes on without remote clients")
    shell.run("down")


def test_an_address_that_is_taken_ends_the_start_at_once_and_is_named(shell):
    shell.run("keys", "new", "ann")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        shell.paths.config_file.write_text(f'[remote]\nlisten = "tcp://127.0.0.1:{taken.getsockname()[1]}"\n')
        ended = shell.run("up", "-d", code=3)
    assert "remote.listen" in ended.stderr and "Address already in use" in ended.stderr
