"""The worker's side of the template helper: start it, ask it, kill and replace it. One thread (the background one) uses it.

Starting takes a tenth of a second and is not part of a rendering's limit. A helper that overstepped its limits is gone or is
killed; the next rendering starts another.
"""

import os
import select
import signal
import subprocess
import sys
import time
from typing import IO

import msgspec

from erllama_host.errors import InternalError, InvalidRequest, NotSupported
from workers.chat.frames import CPU_S, LENGTH, Answer, Job, Start, pack

START_S = 60.0
WALL_S = 60.0
"""Backstop for a helper that neither answers nor uses CPU. Generous: on a busy machine 2 s of CPU take a while."""
MAX_ANSWER_BYTES = 128 << 20


class TemplateHelper:
    """Renders by one template. `render` blocks."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the helper that runs now, for tests."""
        return self._process.pid if self._process is not None else None

    def render(self, job: Job) -> Answer:
        """Render one conversation.

        Raises:
            InvalidRequest: the template refuses the messages, or they nest too deeply to be sent.
            NotSupported: the template cannot be run, or not within its limits.
            InternalError: there is no helper to be had.
        """
        process = self._running()
        try:
            frame = pack(job)
        except RecursionError as error:
            raise InvalidRequest("the messages nest too deeply", field="chat.messages") from error
        answer = self._ask(process, frame, WALL_S)
        if answer is None:
            raise _unsupported(self._post_mortem(process))
        if answer.refused:
            raise InvalidRequest(f"the chat template refuses these messages: {answer.error}", field="chat.messages")
        if answer.unfit:
            raise InvalidRequest(
                f"the chat template cannot render these messages: {answer.error}", field="chat.messages"
            )
        if answer.error is not None:
            raise _unsupported(f"the template fails on these messages: {answer.error}")
        return answer

    def close(self) -> None:
        """End the helper."""
        if self._process is not None:
            self._end(self._process)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = process = _start_process()
        answer = self._ask(process, pack(self._start), START_S)
        if answer is not None and answer.ready:
            return process
        reason = self._post_mortem(process)
        if answer is not None:
            raise _unsupported(f"the model's chat template cannot be used: {answer.error}")
        if process.returncode == -signal.SIGPROF:
            raise _unsupported(reason)
        raise InternalError("the helper process for chat templates does not start; its log has the reason")

    def _ask(self, process: "subprocess.Popen[bytes]", frame: bytes, limit_s: float) -> Answer | None:
        """Send a frame and wait for its answer; None if none came, and then the helper is unusable."""
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + limit_s
        if not _write(process.stdin, frame, deadline):
            return None
        head = _read(process.stdout, LENGTH.size, deadline)
        if head is None or LENGTH.unpack(head)[0] > MAX_ANSWER_BYTES:
            return None
        body = _read(process.stdout, LENGTH.unpack(head)[0], deadline)
        return msgspec.msgpack.decode(body, type=Answer) if body is not None else None

    def _post_mortem(self, process: "subprocess.Popen[bytes]") -> str:
        """End a helper that did not answer; what it died of, for people."""
        self._end(process)
        if process.returncode == -signal.SIGPROF:
            return f"the template took more than {CPU_S:g} s of CPU time"
        return "the template's helper process ended or did not answer within its limits"

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = None
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def _start_process() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "workers.chat.sandbox"]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    except OSError as error:
        raise InternalError(f"the helper process for chat templates cannot be started: {error.strerror}") from error
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)  # a helper that does not read must not be waited for without end
    return process


def _write(pipe: IO[bytes], frame: bytes, deadline: float) -> bool:
    """All of `frame`; False at the deadline, or when the other side is gone."""
    rest = memoryview(frame)
    while rest:
        if not _is_ready(pipe, select.POLLOUT, deadline):
            return False
        try:
            rest = rest[pipe.write(rest) or 0 :]
        except BrokenPipeError:
            return False
    return True


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes | None:
    """Exactly `size` bytes; None at the deadline or the end."""
    chunks: list[bytes] = []
    while size:
        chunk = pipe.read(size) if _is_ready(pipe, select.POLLIN, deadline) else b""
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _is_ready(pipe: IO[bytes], event: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1e3))


def _unsupported(reason: str) -> NotSupported:
    return NotSupported(reason, what="template")
