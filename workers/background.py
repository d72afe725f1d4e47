"""Work that may take longer than the service loop can wait: one thread, in order, bounded.

What is slow is either waiting (a template renders in another process) or native code that lets go of the GIL (tokenising
megabytes), so a thread is enough. The result travels back through the service's inbox and is used in the service thread.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erllama_host.errors import ErllamaError, QueueFull

MAX_JOBS = 256


@dataclass(frozen=True)
class JobDone:
    """A job has ended: call `then(result, error)` in the service thread; exactly one of the two is set."""

    then: Callable[[Any, ErllamaError | None], None]
    result: Any
    error: ErllamaError | None


class Background:
    """One worker thread and its queue. `run` from the service thread only."""

    def __init__(self, name: str, report: Callable[[object], None]) -> None:
        """`report` takes a `JobDone`, or the exception of a job that failed in a way nobody expected; from the thread."""
        self._report = report
        self._jobs: queue.Queue[tuple[Callable[[], Any], Callable[[Any, ErllamaError | None], None]]] = queue.Queue(
            MAX_JOBS
        )
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def run(self, job: Callable[[], Any], then: Callable[[Any, ErllamaError | None], None]) -> None:
        """Run `job` in the thread, then `then(result, error)` in the service thread.

        Raises:
            QueueFull: too many jobs wait.
        """
        try:
            self._jobs.put_nowait((job, then))
        except queue.Full:
            raise QueueFull(f"{MAX_JOBS} prompts wait to be prepared", retry_after_s=1.0) from None

    def _work(self) -> None:
        while True:
            job, then = self._jobs.get()
            try:
                self._report(JobDone(then, job(), None))
            except ErllamaError as error:
                self._report(JobDone(then, None, error))
            except Exception as error:  # noqa: BLE001  # reported: the service thread ends the process on it
                self._report(error)
