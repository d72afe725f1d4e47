"""Keys, tcp and roles, from the command line to a host that listens."""

import json
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from erllama_host.config import Paths
from erllama_host.supervisor.stop import stop_host
from tests.support.command_line import Shell

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

    kept = shell.paths.home.parent / "kept.key_secret"
    shutil.copy(keys["user"]["secret_key_file"], kept)
    shell.run("keys", "remove", "user")
    keys["user"]["secret_key_file"] = str(kept)
    assert "refuses this key" in remote("user", "ps", code=3).stderr
    assert "one" in remote("admin", "ps").stdout
    shell.run("down")
