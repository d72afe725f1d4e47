"""Two workers of one model: the younger serves, the older leaves."""

import os
import subprocess
import sys

import pytest

from erllama_host import Client
from erllama_host.process import ExitCode
from tests.support.hosts import running_host

pytestmark = pytest.mark.process


def test_of_two_workers_the_older_leaves():
    with (
        running_host('[models.tiny]\nbackend = "stub"\nn_ctx = 512\n') as running,
        Client(running.paths.endpoint) as client,
    ):
        model = client.model("tiny")
        before = model.complete("hello", max_tokens=8).text
        # It is younger than the supervised one, which has to leave, is respawned, and is then the youngest.
        stranger = subprocess.Popen(
            [sys.executable, "-m", "workers", "tiny"],
            env={**os.environ, **running.paths.environment()},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert stranger.wait(60) == ExitCode.FENCED
        finally:
            stranger.kill()
            stranger.wait()
        assert model.complete("hello", max_tokens=8).text == before
        assert model.info().pid != stranger.pid
