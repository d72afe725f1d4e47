"""Commands that follow something end when their reader goes, although nothing new comes."""

import os
import sys

import pytest

from erllama_host.cli.output import check_reader


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


def test_output_that_is_no_descriptor_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", _Stdout(-1))
    check_reader()
    monkeypatch.undo()
