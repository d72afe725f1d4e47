"""Slices of file work between looks at the socket. I/O thread only.

A job is a generator: it yields wherever it may be interrupted. What the engine waits for (mapping, preparing) goes before what
nobody waits for (publishing).
"""

import time
from collections import deque
from collections.abc import Iterator

SLICE_S = 0.001

Job = Iterator[None]


class Jobs:
    """Two queues of jobs."""

    def __init__(self) -> None:
        self._urgent: deque[Job] = deque()
        self._background: deque[Job] = deque()

    def __bool__(self) -> bool:
        return bool(self._urgent or self._background)

    @property
    def has_background(self) -> bool:
        """Whether anything that nobody waits for is left to do."""
        return bool(self._background)

    def add_urgent(self, job: Job) -> None:
        """Somebody waits for it."""
        self._urgent.append(job)

    def add_background(self, job: Job) -> None:
        """Nobody does."""
        self._background.append(job)

    def run_slice(self) -> None:
        """Work for about `SLICE_S`."""
        until = time.monotonic() + SLICE_S
        while self and time.monotonic() < until:
            queue = self._urgent or self._background
            job = queue[0]
            if next(job, _END) is _END:
                queue.remove(job)


_END = object()
