"""The service thread: one loop over the socket to the controller, the reports of the engine, and the clock.

It never computes and never waits for anything but the poller, so it answers within milliseconds while the engine is busy. What it
cannot expect (a bug, a dead engine) ends the process: the supervisor restarts it and clients resume their streams.
"""

import time
from types import FrameType

import zmq

from erllama_host.process import ExitCode
from erllama_host.protocol.inference import CLIENT_SIGN_OF_LIFE_S
from erllama_host.transport.sockets import connection_monitor, is_up, receive
from workers.dispatch import Dispatcher
from workers.inbox import Inbox

MAX_BATCH = 256
"""Messages taken in before reports and time get their turn."""
TICK_S = 0.25
"""Longest wait: heartbeats and expiry are looked at so often."""

PAUSE_S = 2.0
"""A turn of the loop that took so long was no turn but a pause."""
GRACE_S = CLIENT_SIGN_OF_LIFE_S + 2.0
"""Within it every client that lives has given a sign."""


class Silence:
    """When to look at signs of life: not while messages are left or the controller is away, nor soon after that or after a pause of
    our own (a stopped process, a machine that slept), when what clients have said meanwhile is still on its way. Pure.
    """

    def __init__(self) -> None:
        self._turn_at: float | None = None
        self._judge_at = float("-inf")
        self._connected = False

    def connection(self, now: float, *, connected: bool) -> None:
        """The connection to the controller has come or gone."""
        self._connected = connected
        self._judge_at = now + GRACE_S

    def may_be_judged(self, now: float, *, all_heard: bool) -> bool:
        """Asked once a turn of the loop; true at most every `TICK_S`."""
        if self._turn_at is not None and now - self._turn_at > PAUSE_S:
            self._judge_at = now + GRACE_S
        self._turn_at = now
        if not all_heard or not self._connected or now < self._judge_at:
            return False
        self._judge_at = now + TICK_S
        return True


class Service:
    """The loop."""

    def __init__(self, socket: "zmq.Socket[bytes]", inbox: Inbox[object], dispatcher: Dispatcher) -> None:
        self._socket = socket
        self._inbox = inbox
        self._dispatcher = dispatcher
        self._num_signals = 0
        self._seen_signals = 0
        # A new connection may lead to a controller that has never heard of us: every one gets a hello.
        self._monitor = connection_monitor(socket)
        self._silence = Silence()
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(inbox.fileno(), zmq.POLLIN)

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Handler for SIGTERM: only notes it, and wakes the loop."""
        self._num_signals += 1
        self._inbox.wake()

    def run(self, endpoint: str) -> ExitCode:
        """Connect and serve until the process has to end; returns its exit code."""
        self._socket.connect(endpoint)
        while self._dispatcher.exit_code is None:
            self._poller.poll(int(TICK_S * 1e3))
            now = time.monotonic()
            all_heard = self._take_in(now)
            self._dispatcher.tick(now)
            if self._silence.may_be_judged(now, all_heard=all_heard):
                self._dispatcher.judge_silence(now)
        return self._dispatcher.exit_code

    def close(self) -> None:
        """Close the monitor; the socket belongs to the caller."""
        self._socket.disable_monitor()
        self._monitor.close()

    def _take_in(self, now: float) -> bool:
        """Take in what there is, reports before messages since these may ask for them; False if messages are left."""
        for report in self._inbox.drain():
            self._dispatcher.report(report)
        self._dispatcher.engine_reports(now)
        while (event := receive(self._monitor)) is not None:
            self._connection_changed(is_up(event), now)
        while self._seen_signals < self._num_signals:
            self._seen_signals += 1
            self._dispatcher.terminate(now)
        for _ in range(MAX_BATCH):
            frames = receive(self._socket)
            if frames is None:
                return True
            self._dispatcher.message(frames, now)
        return False

    def _connection_changed(self, connected: bool, now: float) -> None:
        self._silence.connection(now, connected=connected)
        if connected:
            self._dispatcher.hello()
