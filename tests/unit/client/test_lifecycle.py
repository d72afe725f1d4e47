"""Imports, forks, the background thread: what a client leaves behind."""

import gc
import json
import os
import subprocess
import sys
import threading

import pytest

from erllama_host.client import Client
from erllama_host.client.endpoint import client_options
from erllama_host.client.loop_thread import LoopThread
from erllama_host.errors import ConfigError
from tests.support.fake_host import FakeHost


def run_python(code, warnings="error", **environment):
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_importing_the_client_needs_neither_asyncio_nor_zmq():
    """They are half of the time: an import stays far below 100 ms without them."""
    probe = "import json, sys; import erllama_host.client; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(run_python(probe).stdout)
    assert not {"asyncio", "zmq", "numpy", "llama_cpp", "circus"} & set(loaded)


def test_a_script_that_forgets_to_close_ends_quietly():
    with FakeHost() as host:
        host.paused = True
        code = (
            "from erllama_host import Client\n"
            "client = Client()\n"
            "client.hello()\n"
            "stream = client.model('tiny').infer('hello')\n"
            "print('end')\n"
        )
        done = run_python(code, ERLLAMA_ENDPOINT=host.endpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_an_asyncio_script_that_forgets_to_close_ends_quietly():
    with FakeHost() as host:
        host.paused = True
        code = (
            "import asyncio\n"
            "from erllama_host import AsyncClient\n"
            "async def main():\n"
            "    client = AsyncClient()\n"
            "    await client.hello()\n"
            "    stream = client.model('tiny').infer('hello')\n"
            "    await asyncio.sleep(0.05)\n"
            "    return client, stream\n"
            "kept = asyncio.run(main())\n"
            "print('end')\n"
        )
        done = run_python(code, ERLLAMA_ENDPOINT=host.endpoint)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_forked_child_is_told_to_make_its_own():
    code = (
        "import os\n"
        "from erllama_host import Client\n"
        "client = Client()\n"
        "client.hello()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        client.hello()\n"
        "    except RuntimeError as error:\n"
        "        print(error, flush=True)\n"
        "    with Client() as own:\n"
        "        print(own.hello().protocol, flush=True)\n"
        "    client.close()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "print(client.hello().protocol)\n"
    )
    with FakeHost() as host:
        done = run_python(
            code, "ignore", ERLLAMA_ENDPOINT=host.endpoint
        )  # newer Pythons warn of any fork beside threads
    assert done.stderr == ""
    assert "before a fork" in done.stdout
    assert done.stdout.split()[-2:] == ["1", "1"]


def test_a_forked_child_does_not_wait_for_threads_that_it_has_not():
    """Whoever held a lock at the fork is not there to let it go; and the child drops what it has inherited, garbage included."""
    code = (
        "import os, signal, threading\n"
        "from erllama_host import Client\n"
        "client = Client()\n"
        "client.hello()\n"
        "held, over = threading.Event(), threading.Event()\n"
        "def hold():\n"
        "    with client._lock, client._thread._lock:\n"
        "        held.set(), over.wait()\n"
        "threading.Thread(target=hold).start()\n"
        "held.wait()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.alarm(30)\n"
        "    stopped = []\n"
        "    for call in (client.hello, lambda: client.model('tiny').infer('x')):\n"
        "        try:\n"
        "            call()\n"
        "        except RuntimeError:\n"
        "            stopped.append(True)\n"
        "    client._thread.stop(lambda: None)\n"
        "    os._exit(len(stopped))\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "over.set()\n"
        "print(os.waitstatus_to_exitcode(status))\n"
    )
    with FakeHost() as host:
        done = run_python(code, "ignore", ERLLAMA_ENDPOINT=host.endpoint)
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_client_that_was_never_used_has_no_thread():
    before = set(threading.enumerate())
    client = Client("ipc:///tmp/no")
    assert set(threading.enumerate()) <= before
    client.cancel("tiny/" + "0" * 32)
    client.close()


def test_a_bad_endpoint_leaves_no_thread():
    before = set(threading.enumerate())
    client = Client("nonsense")
    with pytest.raises(ConfigError):
        client.hello()
    assert set(threading.enumerate()) <= before


def test_options_come_from_the_environment_and_are_checked(tmp_path):
    found = client_options(None, 1.0, None, None, 3, None, {"ERLLAMA_RUN": str(tmp_path)})
    assert (found.endpoint, found.local) == (f"ipc://{tmp_path}/clients.sock", True)
    assert not client_options("tcp://h:1", 1.0, None, None, 3, None).local
    for arguments in ((0, None, 3), (1.0, None, -1)):
        with pytest.raises(ConfigError):
            client_options("ipc://x", arguments[0], None, None, arguments[2], None)
    with pytest.raises(ConfigError, match="together"):
        Client("tcp://127.0.0.1:1", key_file="/k").hello()


def test_the_loop_thread_hands_over_results_and_errors_and_ends_once():
    thread = LoopThread()
    assert thread.run(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: 1 // 0)
    seen = []
    thread.stop(lambda: seen.append("stopped"))
    thread.stop(lambda: seen.append("again"))
    assert seen == ["stopped"]
    assert thread.post(lambda: None) is False
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(lambda: 5)


def test_a_stream_collected_on_the_loops_own_thread_does_not_lock_it():
    with FakeHost() as host, Client(host.endpoint) as client:
        host.paused = True
        streams = [client.model("tiny").infer("hello")]
        host.wait_for("infer")

        def drop():
            streams.clear()
            gc.collect()

        client._thread.run(drop)
        host.wait_for("cancel")
