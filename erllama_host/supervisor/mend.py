"""What circus 0.19 gets wrong and the host depends on, mended from inside circusd. One function per defect.

| defect of stock circus 0.19.0                                    | consequence                          | mended by          |
|------------------------------------------------------------------|--------------------------------------|--------------------|
| children are reaped by polling                                   | a respawn waits for `check_delay`    | `reap_on_sigchld`  |
| one lock for everything, also for noticing deaths                | while one worker is being stopped,   | `_manage`          |
|                                                                  | another one's crash goes unnoticed   |                    |
| commands that meet the lock are refused; SIGTERM, which becomes  | `down` right after `up` is lost      | `queue_commands`   |
| the command `quit`, is lost                                      |                                      |                    |
| a death found by polling psutil is never reported (`reap`)       | no exit note, uncounted crash        | `_report_missed`   |
| pipes of a dead process are closed unread, and stay registered   | its last words are lost; the next    | `take_last_words`  |
| in the event loop                                                | process with that descriptor is deaf |                    |

Everything touched here is checked at start (`check`), and circus is pinned: another version fails loudly instead of half working.
All of it runs on circusd's one event loop.
"""

import asyncio
import json
import logging
import os
import select
import signal
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

import circus

from erllama_host.errors import InternalError

log = logging.getLogger("circus")

EXPECTED_VERSION = "0.19.0"
QUEUE_LIMIT_S = 60.0
QUEUE_POLL_S = 0.01
PIPE_BYTES = 65536
NEVER_LOCKED = frozenset(
    {
        *("list", "status", "stats", "options", "numwatchers", "numprocesses", "dstats", "get"),
        *("listsockets", "globaloptions", "kill", "signal"),
    }
)
"""Commands that take no lock, or must not wait for it."""
SPAWNING = frozenset(
    {
        *("arbiter_start_watchers", "arbiter_reload_config", "arbiter_stop", "arbiter_restart", "arbiter_reload"),
        *("watcher_reload", "watcher_do_action", "watcher_incr", "watcher_decr"),
    }
)
"""Locked commands that start or stop processes of several watchers themselves: reaping waits for them."""


def check(arbiter: Any) -> None:
    """See that everything that is about to be replaced is there.

    Raises:
        InternalError: another circus than the one this was written for.
    """
    if circus.__version__ != EXPECTED_VERSION:
        raise InternalError(f"circus {EXPECTED_VERSION} is needed, this is {circus.__version__}")
    for owner, names in (
        (arbiter, ("reap_processes", "manage_watchers", "iter_watchers", "_stopping", "_exclusive_running_command")),
        (arbiter.ctrl, ("dispatch", "caller")),
    ):
        missing = [name for name in names if not hasattr(owner, name)]
        if missing:
            raise InternalError(f"circus {circus.__version__}: {type(owner).__name__} has no {missing}")


class Reaper:
    """Notices deaths at once and starts what may be started; the only one that does, in place of `Arbiter.manage_watchers`.

    `may_spawn(watcher)` is False while a watcher waits out its back-off. Passes never overlap: a wish that comes during one
    makes one more follow it.
    """

    def __init__(self, arbiter: Any, may_spawn: Callable[[Any], bool]) -> None:
        self._arbiter = arbiter
        self._may_spawn = may_spawn
        self._loop: asyncio.AbstractEventLoop = arbiter.loop.asyncio_loop
        self._running = False
        self._again = False
        self._tasks: set[asyncio.Task[None]] = set()

    def install(self) -> None:
        """Take the place of circus's own periodic pass, and wake on SIGCHLD as well."""
        self._arbiter.manage_watchers = self.manage
        self._arbiter.ctrl.caller.callback = self.manage
        self._loop.add_signal_handler(signal.SIGCHLD, self.wake)

    def wake(self) -> None:
        """Make a pass soon."""
        task = self._loop.create_task(self.manage())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def manage(self) -> None:
        """One pass, or a note that one more is wanted."""
        if self._running:
            self._again = True
            return
        if self._arbiter._exclusive_running_command in SPAWNING:
            self._loop.call_later(0.02, self.wake)
            return
        self._running = True
        try:
            self._again = True
            while self._again:
                self._again = False
                await self._pass()
        finally:
            self._running = False

    async def _pass(self) -> None:
        """Reap the dead, then let every watcher that may do so replace them."""
        if self._arbiter._stopping:
            return
        self._arbiter.reap_processes()
        self._report_missed()
        waits = [watcher.manage_processes() for watcher in self._arbiter.iter_watchers() if self._may_spawn(watcher)]
        for outcome in await asyncio.gather(*filter(isawaitable, waits), return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.error("managing processes failed", exc_info=outcome)

    def _report_missed(self) -> None:
        """Reap what a status check of circus itself has already waited for: `reap_processes` cannot see it any more."""
        for watcher in self._arbiter.iter_watchers():
            if not watcher.is_stopping():
                for process in [each for each in watcher.processes.values() if not each.is_alive()]:
                    watcher.reap_process(process.pid)


def queue_commands(arbiter: Any) -> None:
    """Let commands that meet the lock wait for it instead of being refused (SIGTERM among them), 60 s at most."""
    loop: asyncio.AbstractEventLoop = arbiter.loop.asyncio_loop
    dispatch = arbiter.ctrl.dispatch

    def dispatch_when_free(job: tuple[Any, bytes], give_up_at: float | None = None) -> None:
        if arbiter._exclusive_running_command is None or _command(job[1]) in NEVER_LOCKED:
            dispatch(job)
            return
        give_up_at = give_up_at or loop.time() + QUEUE_LIMIT_S
        if loop.time() >= give_up_at:
            dispatch(job)  # circus's own refusal
            return
        loop.call_later(QUEUE_POLL_S, dispatch_when_free, job, give_up_at)

    arbiter.ctrl.dispatch = dispatch_when_free


def _command(message: bytes) -> str:
    try:
        return str(json.loads(message)["command"]).lower()
    except (ValueError, KeyError, TypeError):
        return ""


def take_last_words(watcher: Any, process: Any) -> None:
    """Write what a dead process left in its pipes to its log, and forget the pipes."""
    redirector = watcher.stream_redirector
    if redirector is None:
        return
    for name, pipe in redirector.get_process_pipes(process):
        # A grandchild may hold the other end open: never read without knowing that there is something.
        while not pipe.closed and select.select([pipe], [], [], 0)[0]:
            data = os.read(pipe.fileno(), PIPE_BYTES)
            if not data:
                break
            redirector.redirect[name]({"data": data, "pid": process.pid, "name": name})
    redirector.remove_redirections(process)


def exit_code_of(pid: int) -> int:
    """Exit code of a child nobody has waited for (-N for signal N); SIGKILL, the likeliest, when somebody has."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if ended else -signal.SIGKILL


def kill_process(process: Any) -> None:
    """SIGKILL a circus process; psutil checks the identity of the pid, so that a reused one is not hit."""
    process._worker.send_signal(signal.SIGKILL)


def end_circusd() -> None:
    """Ask circusd to end in order; its parent or systemd sees from the note why."""
    os.kill(os.getpid(), signal.SIGTERM)
