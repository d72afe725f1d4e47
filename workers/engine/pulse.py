"""Since when the engine has been at one piece of work, and how long that may take: by this the controller's watchdog knows a hang.

Written by the engine thread, read by the service thread: `work` is one reference that is replaced whole, so that reading it needs
no lock. Every piece of work starts the clock anew, so what counts as progress is that pieces end, not that they are short.
"""

from collections.abc import Callable

from workers.commands import Work

SLOWER_THAN_EXPECTED = 10.0
"""So many times what it should take is a hang: a long prefill on a slow and busy machine is not."""


class Pulse:
    """Owner of `work`."""

    def __init__(self, hang_timeout_s: float, clock: Callable[[], float]) -> None:
        """
        Args:
            hang_timeout_s: no piece of work counts as hung before. clock: monotonic seconds.
        """
        self._hang_timeout_s = hang_timeout_s
        self._clock = clock
        self.work: Work | None = None
        """None while there is nothing to do."""

    def begin(self, expected_s: float = 0.0) -> None:
        """The next piece, which should take `expected_s`."""
        self.work = Work(self._clock(), max(self._hang_timeout_s, SLOWER_THAN_EXPECTED * expected_s))

    def begin_bounded(self, bound_s: float) -> None:
        """The next piece, which ends by itself after `bound_s` at most (a save)."""
        self.work = Work(self._clock(), bound_s + self._hang_timeout_s)

    def rest(self) -> None:
        """Nothing to do."""
        self.work = None
