"""A descriptor that a poller can watch and any thread, or a signal handler, can make readable."""

import os

READ_BYTES = 4096


class Wakeup:
    """A non-blocking pipe. `set` from anywhere, also after the end; `clear` and `close` by its owner."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def set(self) -> None:
        """Wake the poller; harmless when it is about to wake already, and when there is none any more."""
        if (
            self._write_fd < 0
        ):  # a signal at the very end must not end in an error, nor in a file that has the number now
            return
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            return  # full: it will wake

    def clear(self) -> None:
        """Take all wakes that have come."""
        try:
            while len(os.read(self.fd, READ_BYTES)) == READ_BYTES:
                pass  # less than that was all of it
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends."""
        ends, self.fd, self._write_fd = (self.fd, self._write_fd), -1, -1
        for end in ends:
            os.close(end)
