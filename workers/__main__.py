"""`python -m workers MODEL_ID`: one model's process. Started by the supervisor, for the host at $ERLLAMA_RUN."""

import faulthandler
import gc
import os
import signal
import sys

from erllama_host.process import ExitCode, die_with_parent


def main(arguments: list[str]) -> ExitCode:
    """Serve the model named by the only argument."""
    # First of all: a worker that outlives its supervisor would be a duplicate beside the one that the next supervisor starts.
    die_with_parent()
    # Ctrl-C in a terminal reaches the whole group; the supervisor turns it into an orderly stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # numpy's BLAS makes a thread for each core when it is loaded, and nothing here multiplies matrices with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()  # what importing makes stays: looking for garbage in it costs 12 ms now, and 5 ms at every full collection later
    from erllama_host.config import find_paths
    from erllama_host.errors import ErllamaError
    from erllama_host.ids import check_model_id
    from workers.worker import run_worker

    gc.freeze()
    gc.enable()
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m workers MODEL_ID\n")
        return ExitCode.BAD_CONFIG
    try:
        return run_worker(check_model_id(arguments[0]), find_paths())
    except ErllamaError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        return ExitCode.BAD_CONFIG


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except Exception as error:  # noqa: BLE001  # the last word of the process: its log, and a code that says so
        sys.excepthook(*sys.exc_info())
        code = ExitCode.OUT_OF_MEMORY if isinstance(error, MemoryError) else ExitCode.CRASHED
    sys.stderr.flush()
    # Not sys.exit: a thread in native code (a load, a decode) must not keep the process.
    os._exit(code)
