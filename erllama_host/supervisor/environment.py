"""Defaults for the variables that circus.ini uses, so that `circusd circus.ini` works by itself.

circus.ini has no way to give a variable a default. But circusd reads it twice: first for its own logging, then for everything
else. In between it loads the logging configuration, circusd-logging.ini, whose handler is `CircusdHandler`: creating it checks
the directories and fills in what the environment lacks. The second reading then finds every variable.
"""

import json
import logging
import os
import secrets
import sys
from datetime import UTC, datetime
from typing import Any

from erllama_host.config import Config, Paths, find_paths, load_config
from erllama_host.errors import ConfigError
from erllama_host.process import ExitCode

START_FD = "ERLLAMA_START_FD"
"""The parent's end of the pipe by which `start_host` learns of its lock, and of its failure."""
LOCKED = b"+"
"""What the parent says there once it has the host's lock; anything else is the reason why it has not."""
UP_ID = "ERLLAMA_UP_ID"
"""Names one `up`; set means that `start_host` has made its checks."""
DIE_WITH_PARENT = "ERLLAMA_DIE_WITH_PARENT"
"""Set for hosts in the foreground: circusd ends with its parent."""
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
"""Not passed on: a worker that compiles its hundred modules anew in each of its lives comes back 0.2 s later."""


def circus_variables(paths: Paths, config: Config) -> dict[str, str]:
    """Every variable that circus.ini mentions, and those that lead child processes to the same host.

    ERLLAMA_UP_ID names one `up`: it outlives circusd and the controller (see desired.py of the controller).
    """
    return {
        **paths.environment(),
        "ERLLAMA_PYTHON": sys.executable,
        "ERLLAMA_LOG_MAX_BYTES": str(config.host.log_max_bytes),
        "ERLLAMA_LOG_BACKUPS": str(config.host.log_backups),
        "ERLLAMA_HEARTBEAT_TIMEOUT_S": str(config.host.heartbeat_timeout_s),
        UP_ID: secrets.token_hex(8),
    }


def fill_in_environment() -> None:
    """Prepare the directories of the host and set what is missing of `circus_variables`.

    A configuration that cannot be used ends the process here, with the reason on stderr: nothing has been started yet.
    """
    os.umask(0o077)  # circusd sets its own only after it has opened the log files
    try:
        paths = find_paths()
        paths.prepare()
        config = load_config(paths.config_file)
        variables = circus_variables(paths, config)
        if UP_ID not in os.environ:
            # By hand. Under `erllama up` this was checked before; a circusd that is started again must not fail for a key that
            # was removed since.
            from erllama_host.transport.curve import check_remote  # asyncio and zmq: not for the small parent

            check_remote(paths, config)
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(ExitCode.BAD_CONFIG)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    os.environ.pop(NO_BYTECODE, None)


class CircusdHandler(logging.StreamHandler[Any]):
    """circusd's log: lines of the same form as those of the other processes (observability.py), on stderr."""

    def __init__(self) -> None:
        super().__init__()
        fill_in_environment()

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": "circusd",
            "pid": os.getpid(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        return json.dumps(line)
