"""A thread for slow file work, whose results come back to the loop. Owner of each job: the thread, then the loop."""

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from erllama_host.transport.wakeup import Wakeup

Job = Callable[[], Any]
Done = Callable[[Any], None]


class Background:
    """Runs jobs one after another. An exception in a job is not expected: it is raised in the loop, by `collect`."""

    def __init__(self, name: str, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._results: deque[tuple[Done, Any, BaseException | None]] = deque()
        self.num_pending = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job, done: Done) -> None:
        """Run `job` in the thread, then `done(result)` in the loop."""
        self.num_pending += 1
        self._jobs.put((job, done))

    def collect(self) -> None:
        """In the loop: deliver the results that have come."""
        while self._results:
            done, result, error = self._results.popleft()
            self.num_pending -= 1
            if error is not None:
                raise error
            done(result)

    def stop(self) -> None:
        """End the thread after the jobs it has."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            result, failure = None, None
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  # handed to the loop, which ends the process by it
                failure = error
            self._results.append((done, result, failure))
            self._wakeup.set()
