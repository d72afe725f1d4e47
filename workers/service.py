"""The service thread: one loop over the socket to the controller, the reports of the engine, and the clock.

It never computes and never waits for anything but the poller, so it answers within milliseconds while the engine is busy. What it
cannot expect (a bug, a dead engine) ends the process: the supervisor restarts it and clients resume their streams.
"""

import time
from types import FrameType

import zmq

from erllama_host.process import ExitCode
from erllama_host.transport.sockets import receive
from workers.dispatch import Dispatcher
from workers.inbox import Inbox

MAX_BATCH = 256
"""Messages taken in before reports and time get their turn."""
TICK_S = 0.25
"""Longest wait: heartbeats and expiry are looked at so often."""


class Service:
    """The loop."""

    def __init__(self, socket: "zmq.Socket[bytes]", inbox: Inbox[object], dispatcher: Dispatcher) -> None:
        self._socket = socket
        self._inbox = inbox
        self._dispatcher = dispatcher
        self._num_signals = 0
        self._seen_signals = 0
        # A new connection may lead to a controller that has never heard of us: every one gets a hello.
        self._monitor = socket.get_monitor_socket(zmq.EVENT_CONNECTED)
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
        expired_at = float("-inf")
        while self._dispatcher.exit_code is None:
            self._poller.poll(int(TICK_S * 1e3))
            now = time.monotonic()
            self._take_in(now)
            if now - expired_at >= TICK_S:
                expired_at = now
                self._dispatcher.expire(now)
            self._dispatcher.tick(now)
        return self._dispatcher.exit_code

    def close(self) -> None:
        """Close the monitor; the socket belongs to the caller."""
        self._socket.disable_monitor()
        self._monitor.close()

    def _take_in(self, now: float) -> None:
        """Everything there is to be taken in, in the order in which it may depend on each other: reports, then messages."""
        for report in self._inbox.drain():
            self._dispatcher.report(report)
        self._dispatcher.engine_reports(now)
        while receive(self._monitor) is not None:  # it tells of nothing but connections
            self._dispatcher.hello()
        while self._seen_signals < self._num_signals:
            self._seen_signals += 1
            self._dispatcher.terminate(now)
        for _ in range(MAX_BATCH):
            frames = receive(self._socket)
            if frames is None:
                break
            self._dispatcher.message(frames, now)
