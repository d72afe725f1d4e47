"""The thread behind a `Client`: one asyncio loop, on which its connection lives.

Order of the end, which leaves neither a thread nor a closed loop with work: refuse new work, run `on_stop` on the loop, stop the
loop, join, close the loop.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from erllama_host.client.box import STOPPED, Box

T = TypeVar("T")


class LoopThread:
    """Owns the loop. Safe to use from any thread of the process that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # Re-entrant: the garbage collector may end a dropped stream, which posts, while this thread is posting.
        self._lock = threading.RLock()
        self._stopped = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="erllama-client", daemon=True)
        self._thread.start()

    def post(self, function: Callable[..., object], *args: Any) -> bool:
        """Run `function` on the loop, soon; False when the loop is stopped, or the process is a forked child of the owner."""
        if (
            os.getpid() != self._pid
        ):  # before the lock: another thread may have held it at the fork, and is not there to let go
            return False
        with self._lock:
            if self._stopped:
                return False
            self._loop.call_soon_threadsafe(function, *args)
            return True

    def run(self, function: Callable[[], T]) -> T:
        """Run `function` on the loop and wait for its result."""
        box: Box = Box()

        def call() -> None:
            try:
                box.settle(function(), None)
            except Exception as error:  # noqa: BLE001  # handed to the caller, who raises it
                box.settle(None, error)

        if not self.post(call):
            raise RuntimeError(STOPPED)
        return box.wait()  # type: ignore[no-any-return]

    def stop(self, on_stop: Callable[[], object]) -> None:
        """End the thread. Idempotent; does nothing in a forked child, where there is no such thread."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._end, on_stop)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _end(self, on_stop: Callable[[], object]) -> None:
        try:
            on_stop()
        finally:
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
