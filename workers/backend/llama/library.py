"""What every other module of the package needs from the library as a whole: its settings, its log, what it must have.

llama-cpp-python's low-level API moves with llama.cpp, so the functions used are checked here, once, by name: a
missing one is a clear error at load time and not an AttributeError in the middle of a request.
"""

import ctypes
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from erllama_host.errors import ModelLoadFailed

# Without it a failing assertion in ggml starts a debugger to print a backtrace, which can hang the dying process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
# llama.cpp's threads meet at hundreds of barriers a token. By default they spin there for milliseconds, which is
# right only while every one of them has a core to itself; sleeping at once costs a wake-up per barrier. So: spin for
# as long as a barrier takes among threads that all run, then sleep. ms a token with two threads on two cores, quiet /
# with as much other work on them: default 8.7 / 350, OMP_WAIT_POLICY=passive 16-21 / 16-30, 1000 turns 9-10 / 43,
# 5000 turns 9 / 200.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from workers.backend.llama.binding import VERSION
from workers.backend.llama.binding import lib as lib
from workers.backend.llama.required import REQUIRED


def _brief(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the library that keeps the GIL while it runs.

    For what takes less than a microsecond, several times a step: giving the GIL away there lets the service thread in, and
    getting it back takes up to a switch interval.
    """
    function = getattr(ctypes.PyDLL(lib._lib._name, handle=lib._lib._handle), name, None)
    if function is not None:  # else `initialize` says which are missing
        function.restype, function.argtypes = result, arguments
    return function


logits_address: Any = _brief("llama_get_logits_ith", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
"""(context, row) → address of the row's logits as an int, None where it has none. Only after `llama_synchronize`: it waits else."""
last_position: Any = _brief("llama_memory_seq_pos_max", ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32)
"""(memory, sequence) → its highest position, -1 where it is empty."""

# Its warnings are information to us: one says that cells ran out, which is part of every busy day.
_WARNING_LEVEL = 3
_ERROR_LEVEL = 4
_log = logging.getLogger("llama.cpp")


class NativeLog:
    """llama.cpp's log: passed on to `logging`, and the first error since `clear` kept: the reason why something failed.

    The first, because what follows it only says that the callers failed as well ("failed to load model"). Filled by
    whatever thread is inside llama.cpp; the worker has one such thread at a time that logs errors.
    """

    def __init__(self) -> None:
        self._error = ""
        self._captured: list[str] | None = None

    def take(self, level: int, text: str) -> None:
        """One message. Dots of progress bars come as continuations and are nothing to keep."""
        line = text.strip()
        if not line or not line.strip("."):
            return
        if self._captured is not None:
            self._captured.append(line)
        if level == _ERROR_LEVEL and not self._error:
            self._error = line
        python_level = {_WARNING_LEVEL: logging.INFO, _ERROR_LEVEL: logging.ERROR}.get(level, logging.DEBUG)
        _log.log(python_level, "%s", line)

    def clear(self) -> None:
        """Forget earlier errors: call before something whose reason will be asked for."""
        self._error = ""

    def reason(self, fallback: str) -> str:
        """The first error since `clear`, or `fallback` where llama.cpp gave none."""
        return self._error or fallback

    @contextmanager
    def captured(self) -> Iterator[list[str]]:
        """Collect every line while inside: some facts (buffer sizes) are in the log and nowhere else."""
        lines: list[str] = []
        self._captured = lines
        try:
            yield lines
        finally:
            self._captured = None


NATIVE_LOG = NativeLog()


def _on_log(level: int, text: bytes, _user_data: Any) -> None:
    NATIVE_LOG.take(level, text.decode(errors="replace"))


# The library keeps the pointer, so the callback object must live as long as the process.
_LOG_CALLBACK = lib.llama_log_callback(_on_log)
_initialized = False


def initialize() -> None:
    """Prepare the library; once per process, further calls do nothing.

    Raises:
        ModelLoadFailed: the installed version lacks a function that is needed.
    """
    global _initialized
    if _initialized:
        return
    missing = [name for name in REQUIRED if not hasattr(lib, name)]
    if missing:
        raise ModelLoadFailed(
            f"llama-cpp-python {VERSION} is not supported: it lacks {', '.join(missing)}; "
            "install the version that erllama-host[host] asks for"
        )
    lib.llama_log_set(_LOG_CALLBACK, None)
    lib.llama_backend_init()
    _initialized = True


def build_name() -> str:
    """Version and machine of the library: KV made by another build is not ours to use."""
    native = lib.llama_version().decode(errors="replace")
    return f"llama-cpp-python {VERSION}, llama.cpp {native}, {platform.machine()}"


def system_name() -> str:
    """CPU features and devices that llama.cpp found."""
    return str(lib.llama_print_system_info().decode(errors="replace")).strip()


class AbortFlag:
    """Stops a decode from another thread, without Python in the loop.

    llama.cpp asks an abort callback hundreds of times per decode. As a Python callback that takes the GIL each time:
    beside a busy second thread a step went from 12 to 1 069 ms. So the callback is libc's `strlen` and its argument a
    two-byte buffer: the length of the string is 0, "go on", until the first byte is set. Owner of the buffer: this
    object, which must outlive every context that it is installed in.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
        self._callback = lib.ggml_abort_callback(strlen)

    def install(self, context: Any) -> None:
        lib.llama_set_abort_callback(context, self._callback, ctypes.cast(self._buffer, ctypes.c_void_p))

    def set(self) -> None:
        """From any thread: one byte, written at once."""
        self._buffer[0] = b"\x01"

    def clear(self) -> None:
        self._buffer[0] = b"\x00"
