"""Commands that follow something: they end when their reader goes, and do not when the host has a bad moment."""

import os
import sys

import pytest

from erllama_host.cli import events
from erllama_host.cli.output import check_reader
from erllama_host.errors import HostUnavailable, ProtocolMismatch, QueueFull, Timeout
from erllama_host.protocol.calls import Event, EventList


class _Stdout:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


def test_a_closed_pipe_is_noticed_and_an_open_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", _Stdout(writer))
    try:
        check_reader()
        os.close(reader)
        with pytest.raises(BrokenPipeError):
            check_reader()
    finally:
        monkeypatch.undo()
        os.close(writer)


class _Host:
    """Answers `events` with errors first, then with one event."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.is_over = list(errors), False

    def events(self, since: int, limit: int, wait_ms: int) -> EventList:
        if self.errors:
            raise self.errors.pop(0)
        self.is_over = True
        return EventList(events=[Event(seq=1, at=1e9, name="ready", model="tiny")], next=1)


def test_a_host_in_the_foreground_is_not_ended_by_one_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`up` follows the events, and the host ends with it: too many open calls must not take it down."""
    slept: list[float] = []
    monkeypatch.setattr(events.time, "sleep", slept.append)
    host = _Host(HostUnavailable("away"), QueueFull("1000 calls are open", retry_after_s=0.5), Timeout("late"))
    events.follow_events(host, 0.0, lambda: host.is_over)  # type: ignore[arg-type]
    assert slept == [0.2, 0.5, 0.2] and "ready\ttiny" in capsys.readouterr().out
    with pytest.raises(ProtocolMismatch):
        events.follow_events(_Host(ProtocolMismatch("another")), 0.0, lambda: False)  # type: ignore[arg-type]


def test_output_that_is_no_descriptor_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", _Stdout(-1))
    check_reader()
    monkeypatch.undo()
