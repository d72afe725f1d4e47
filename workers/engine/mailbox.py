"""The two queues between service thread and engine thread. The only state of the engine that both touch.

Commands wake an engine that waits; it waits only when it has nothing to do. Reports are put in one by one and announced once a
tick: waking a poller costs a system call, a token does not.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from workers.commands import Command, Report


class Internal(Protocol):
    """A command that threads of the engine itself post, e.g. the hash of a file; told apart by its type."""

    @property
    def problem(self) -> str: ...


class Mailbox:
    """See the module docstring."""

    def __init__(self, wake_service: Callable[[], None]) -> None:
        self._commands: deque[Command | Internal] = deque()
        self._reports: deque[Report] = deque()
        self._wake_service = wake_service
        self._signal = threading.Condition()
        self._signalled = False
        self._unannounced = False

    # --- service thread, or any ---------------------------------------------------------------------------------------

    def post(self, command: Command) -> None:
        """Hand a command to the engine; they are taken in order."""
        self._commands.append(command)
        self.wake()

    def post_internal(self, command: Internal) -> None:
        """The same for a helper thread of the engine."""
        self._commands.append(command)
        self.wake()

    def wake(self) -> None:
        """Make a waiting engine look around; also called by the cache client's thread."""
        with self._signal:
            self._signalled = True
            self._signal.notify()

    def reports(self) -> list[Report]:
        """All reports since the last call, in order."""
        found: list[Report] = []
        while self._reports:
            found.append(self._reports.popleft())
        return found

    # --- engine thread ------------------------------------------------------------------------------------------------

    def commands(self) -> list[Command | Internal]:
        """All commands since the last call, in order."""
        found: list[Command | Internal] = []
        while self._commands:
            found.append(self._commands.popleft())
        return found

    def report(self, report: Report) -> None:
        """Queue a report; `announce` tells the service."""
        self._reports.append(report)
        self._unannounced = True

    def announce(self) -> None:
        """Wake the service if there is something new."""
        if self._unannounced:
            self._unannounced = False
            self._wake_service()

    def wait(self, timeout_s: float) -> None:
        """Sleep until somebody wakes us; at once if that happened since the last wait."""
        with self._signal:
            if not self._signalled:
                self._signal.wait(timeout_s)
            self._signalled = False
