"""Exit codes that scripts can rely on, and which error leaves with which. docs/guides/operating.md shows this table."""

import enum

from erllama_host.errors import (
    CapacityError,
    ConfigError,
    ErllamaError,
    HostUnavailable,
    InternalError,
    InvalidRequest,
    ModelFailed,
    ModelLoadFailed,
    NoMemory,
    ProtocolMismatch,
    Timeout,
    WorkerDied,
)


class Exit(enum.IntEnum):
    """Exit codes of `erllama`; `MEANING` has their words."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_HOST = 3
    MODEL_FAILED = 4
    TRY_AGAIN = 5
    INTERNAL = 70
    INTERRUPTED = 130


MEANING: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "the host refused or could not do it; or `doctor` or `cache verify` found a problem",
    Exit.USAGE: "the command line, an option of a load or erllama.toml is wrong",
    Exit.NO_HOST: "no host answers, or one that speaks another protocol version",
    Exit.MODEL_FAILED: "the model cannot be loaded, was given up, or its process died under the request",
    Exit.TRY_AGAIN: "too much is going on, or no answer came in time: the same command may work later",
    Exit.INTERNAL: "a bug in erllama: run it again as `erllama --debug ...` and report the traceback",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}

_BY_ERROR: tuple[tuple[type[ErllamaError], Exit], ...] = (
    (HostUnavailable, Exit.NO_HOST),
    (ProtocolMismatch, Exit.NO_HOST),
    (ConfigError, Exit.USAGE),
    (InvalidRequest, Exit.USAGE),
    (ModelLoadFailed, Exit.MODEL_FAILED),
    (ModelFailed, Exit.MODEL_FAILED),
    (WorkerDied, Exit.MODEL_FAILED),
    (NoMemory, Exit.MODEL_FAILED),
    (CapacityError, Exit.TRY_AGAIN),
    (Timeout, Exit.TRY_AGAIN),
    (InternalError, Exit.INTERNAL),
)


def exit_code(error: ErllamaError) -> Exit:
    """The code to leave with after `error`; the first row of the table that matches."""
    for cls, code in _BY_ERROR:
        if isinstance(error, cls):
            return code
    return Exit.FAILED
