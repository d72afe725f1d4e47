"""circus hooks of every watcher; circus.ini and the controller's `add` name them. Runs inside circusd, on its one loop.

    before_start   the first one installs the mends (mend.py); an operator's start forgets earlier failures
    before_spawn   finds ends that circus has not reported; refuses a process that has been given up
    after_spawn    remembers the process
    before_reap    takes the last words of a process; ends one that circus would otherwise wait for in a busy loop, for ever
    after_reap     writes the exit note, decides about the next life (intensity.py)
    after_stop     when circusd itself ends in order: removes what only circusd's end may remove

State: `Supervision`, one per circusd, owned by this module.
"""

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tornado.ioloop import PeriodicCallback

from erllama_host.config import find_paths
from erllama_host.process import die_with_parent
from erllama_host.supervisor import mend, notes
from erllama_host.supervisor.beat_watch import BeatWatch
from erllama_host.supervisor.environment import DIE_WITH_PARENT
from erllama_host.supervisor.intensity import History, Limits
from erllama_host.supervisor.leftovers import remove_shared_memory
from erllama_host.supervisor.state import CIRCUSD_FILE

STATIC_WATCHERS = ("cache", "controller")
BEAT_CHECK_S = 1.0


class Supervision:
    """What circusd knows beyond circus: histories, watchers that wait or are given up, the controller's beat."""

    def __init__(self, arbiter: Any) -> None:
        self.arbiter = arbiter
        self.run = Path(os.environ["ERLLAMA_RUN"])
        self.histories: dict[str, History] = defaultdict(History)
        self.not_before: dict[str, float] = {}
        self.given_up: set[str] = set()
        self.running: dict[str, int] = {}
        self.reaper = mend.Reaper(arbiter, self.may_spawn)
        self._beat = BeatWatch(
            self.run / notes.BEAT_FILE, float(os.environ["ERLLAMA_HEARTBEAT_TIMEOUT_S"]), time.monotonic()
        )
        self._beat_timer = PeriodicCallback(self.check_controller, BEAT_CHECK_S * 1000)

    def install(self) -> None:
        """Mend circus and start watching."""
        if os.environ.get(DIE_WITH_PARENT):
            die_with_parent()
        mend.check(self.arbiter)
        pid_file = self.run / CIRCUSD_FILE
        if pid_file.exists():
            pid_file.chmod(0o600)  # circus makes it readable to everybody, whatever the umask
        self.reaper.install()
        mend.queue_commands(self.arbiter)
        self._beat_timer.start()

    def may_spawn(self, watcher: Any) -> bool:
        """False while `watcher` waits out its back-off."""
        return bool(watcher.processes) or time.monotonic() >= self.not_before.get(watcher.name, 0.0)

    def forget(self, name: str) -> None:
        """Start `name` with a clean record. The notes stay: the controller may not have read the last one yet."""
        self.histories.pop(name, None)
        self.not_before.pop(name, None)
        self.given_up.discard(name)

    def find_lost_end(self, watcher: Any) -> None:
        """A new process is wanted although the end of the last one was never reported: circus drops a process silently
        that it finds dead while it looks whether to spawn. Report it now, with what the kernel still knows."""
        pid = self.running.get(watcher.name)
        if pid is not None:
            mend.log.warning("%s: the end of %d was not reported", watcher.name, pid)
            self.ended(watcher, pid, mend.exit_code_of(pid))

    def ended(self, watcher: Any, pid: int, exit_code: int) -> None:
        """Decide about the next life of `watcher` and leave a note."""
        if self.running.get(watcher.name) == pid:
            del self.running[watcher.name]
        asked = watcher.is_stopping() or watcher.is_stopped() or self.arbiter._stopping
        ready = notes.was_ready(self.run, watcher.name, pid)
        note = notes.ExitNote(pid=pid, at=time.time(), exit_code=exit_code, ready=ready, asked=True, respawn=False)
        if not asked:
            history = self.histories[watcher.name]
            history.limits = _limits(watcher.env or {})
            verdict = history.ended(time.monotonic(), exit_code, ready)
            note = notes.ExitNote(
                pid, note.at, exit_code, ready, False, verdict.respawn, verdict.delay_s, verdict.reason
            )
        notes.write_exit(self.run, watcher.name, note)
        if not asked:
            self._carry_out(watcher, note)

    def _carry_out(self, watcher: Any, note: notes.ExitNote) -> None:
        if note.respawn:
            self.not_before[watcher.name] = time.monotonic() + note.delay_s
            if note.delay_s:
                self.arbiter.loop.call_later(note.delay_s, self.reaper.wake)
            return
        self.given_up.add(watcher.name)
        watcher.notify_event("gave_up", {"process_pid": note.pid, "exit_code": note.exit_code, "reason": note.reason})
        mend.log.error("%s is given up: %s", watcher.name, note.reason)
        if watcher.name in STATIC_WATCHERS:
            # Without it there is no host: end, so that whoever keeps circusd can report it or start anew.
            (self.run / "gave_up").write_text(f"{watcher.name} {note.reason}\n", encoding="utf-8")
            mend.end_circusd()

    def check_controller(self) -> None:
        """Kill a controller that has stopped beating (a stopped or hung process); circus then starts another."""
        watcher = self.arbiter.get_watcher("controller")
        for process in list(watcher.processes.values()):
            if not watcher.is_stopping() and self._beat.is_overdue(process.pid, time.monotonic()):
                mend.log.error("controller %d has not been heard of for too long: killed", process.pid)
                mend.kill_process(process)


def _limits(env: dict[str, str]) -> Limits:
    default = Limits()
    return Limits(
        int(env.get("ERLLAMA_MAX_RESTARTS", default.max_restarts)),
        float(env.get("ERLLAMA_WITHIN_S", default.within_s)),
    )


def before_start(watcher: Any, arbiter: Any, hook_name: str, **kwargs: Any) -> bool:
    """Install on first use; a start by an operator clears the record of the watcher."""
    if not hasattr(arbiter, "erllama"):
        arbiter.erllama = Supervision(arbiter)
        arbiter.erllama.install()
    arbiter.erllama.forget(watcher.name)
    return True


def before_spawn(watcher: Any, arbiter: Any, hook_name: str, **kwargs: Any) -> bool:
    """False (which stops the watcher) for one that has been given up."""
    arbiter.erllama.find_lost_end(watcher)
    return watcher.name not in arbiter.erllama.given_up


def after_spawn(watcher: Any, arbiter: Any, hook_name: str, pid: int, **kwargs: Any) -> bool:
    """Remember the process: its end must be accounted for before the next one."""
    arbiter.erllama.running[watcher.name] = pid
    return True


def before_reap(watcher: Any, arbiter: Any, hook_name: str, process_pid: int, **kwargs: Any) -> bool:
    """A process still alive when its watcher has been stopped gets SIGKILL: circus waits for it without ever looking up."""
    process = watcher.processes.get(process_pid)
    if process is None:
        return True
    if watcher.is_stopping() and process.is_alive():
        mend.kill_process(process)
    mend.take_last_words(watcher, process)
    return True


def after_reap(
    watcher: Any, arbiter: Any, hook_name: str, process_pid: int, exit_code: int | None, **kwargs: Any
) -> bool:
    """Note the end of a process and decide about the next one."""
    arbiter.erllama.ended(watcher, process_pid, exit_code if exit_code is not None else 0)
    return True


def after_stop(watcher: Any, arbiter: Any, hook_name: str, **kwargs: Any) -> bool:
    """When circusd ends in order, the cached rows in shared memory end with it; after a crash they are what makes it warm again."""
    if watcher.name == "cache" and arbiter._stopping and not arbiter._restarting:
        remove_shared_memory(find_paths())
    return True
