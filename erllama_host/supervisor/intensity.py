"""When a dead process is started again, and when it is given up: OTP's restart intensity, with a back-off. Pure.

A life that ended before its process was ready is counted apart from one that ended later: three of the former in a row will
not get better, whereas a process that had served may be killed now and then by anything. Restarts after the first few come
slower, so that a crash loop does not take the machine; the first ones come at once, because somebody waits.
"""

from collections import deque
from dataclasses import dataclass, field

from erllama_host.process import NO_RESPAWN

MAX_FAILURES_BEFORE_READY = 3
IMMEDIATE_RESTARTS = 3
FIRST_BACK_OFF_S = 0.25
BACK_OFF_BEFORE_READY_S = 0.5


@dataclass(frozen=True)
class Limits:
    """More than `max_restarts` ends within `within_s` seconds are too many."""

    max_restarts: int = 20
    within_s: float = 60.0


@dataclass(frozen=True)
class Verdict:
    """What to do after an end. `reason`: why not `respawn`; `delay_s`: how long to wait before it."""

    respawn: bool
    delay_s: float = 0.0
    reason: str = ""


@dataclass
class History:
    """Ends of one watcher's processes; cleared when an operator starts it."""

    limits: Limits = Limits()
    ends: deque[float] = field(default_factory=deque)
    num_before_ready: int = 0

    def ended(self, now: float, exit_code: int, ready: bool) -> Verdict:
        """Record the end of a process and decide. `now`: monotonic seconds; `exit_code`: -N for signal N."""
        if exit_code in NO_RESPAWN:
            return Verdict(False, reason=f"exit code {exit_code}: starting it again would not help")
        self.num_before_ready = 0 if ready else self.num_before_ready + 1
        if self.num_before_ready >= MAX_FAILURES_BEFORE_READY:
            return Verdict(False, reason=f"ended {self.num_before_ready} times in a row before it was ready")
        self.ends.append(now)
        while now - self.ends[0] > self.limits.within_s:
            self.ends.popleft()
        if len(self.ends) > self.limits.max_restarts:
            return Verdict(False, reason=f"ended {len(self.ends)} times within {self.limits.within_s:g} s")
        return Verdict(True, delay_s=self._back_off())

    def _back_off(self) -> float:
        """Doubling, but slow enough only to spare the machine: the sum must stay below `within_s`, or nothing is ever given up."""
        if self.num_before_ready:
            return BACK_OFF_BEFORE_READY_S * self.num_before_ready
        beyond = len(self.ends) - IMMEDIATE_RESTARTS
        if beyond <= 0:
            return 0.0
        ceiling_s = self.limits.within_s / (4 * max(1, self.limits.max_restarts))
        return float(min(FIRST_BACK_OFF_S * 2 ** (beyond - 1), ceiling_s))
