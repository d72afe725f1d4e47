"""`python -m erllama_host.controller`: started by circus (circus.ini), never by hand."""

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from typing import IO

import psutil

from erllama_host.config import Config, Paths, find_paths, load_config
from erllama_host.controller.service import Controller
from erllama_host.errors import ConfigError
from erllama_host.observability import Log
from erllama_host.process import ExitCode, die_with_parent, set_oom_score
from erllama_host.supervisor.state import hold, keep_from_ageing, read_pid

OLD_ONE_MAY_TAKE_S = 8.0
OOM_SCORE = -500
MAX_DESCRIPTORS = 65_536


def main() -> int:
    """Returns the exit code."""
    die_with_parent()
    os.umask(0o077)
    set_oom_score(OOM_SCORE)
    raise_descriptor_limit()
    try:
        paths = find_paths()
        paths.prepare()
        config = load_config(paths.config_file)
    except ConfigError as error:
        Log("controller").error("bad_config", message=error.message)
        return ExitCode.BAD_CONFIG
    log = Log("controller", config.host.log_level)
    lock = _take_lock(paths.run / "controller.lock", log)
    if lock is None:
        return ExitCode.FENCED
    keep_from_ageing(paths.run)
    try:
        asyncio.run(_serve(paths, config, log))
    except ConfigError as error:
        # What only binding shows: an address of remote.listen that is taken, or not ours. Trying again would not help.
        log.error("bad_config", message=error.message)
        return ExitCode.BAD_CONFIG
    return ExitCode.CLEAN


def raise_descriptor_limit() -> None:
    """Every client and worker takes a descriptor: use what the system allows, not the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, MAX_DESCRIPTORS) if hard != resource.RLIM_INFINITY else MAX_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(paths: Paths, config: Config, log: Log) -> None:
    await Controller(paths, config, log).run()


def _take_lock(path: Path, log: Log) -> IO[str] | None:
    """Two controllers must never serve: ZeroMQ would let the second take the first one's sockets.

    The old one has been told to leave by the kernel when its circusd died; one that does not is hung, and killed.
    """
    lock = hold(path, OLD_ONE_MAY_TAKE_S)
    if lock is None:
        pid = read_pid(path)
        log.warning("old_controller_killed", old=pid, at=time.time())
        if pid and psutil.pid_exists(pid):
            psutil.Process(pid).kill()
        lock = hold(path, OLD_ONE_MAY_TAKE_S)
    return lock


if __name__ == "__main__":
    sys.exit(main())
