"""A descriptor that a poller can watch and any thread, or a signal handler, can make readable."""

import os


class Wakeup:
    """A non-blocking pipe. `set` from anywhere; `clear` and `close` by its owner."""

    def __init__(self) -> None:
        self.fd, self._write_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._write_fd, False)

    def set(self) -> None:
        """Wake the poller; harmless when it is about to wake already."""
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            return  # full: it will wake

    def clear(self) -> None:
        """Take all wakes that have come."""
        try:
            while os.read(self.fd, 4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close both ends."""
        os.close(self.fd)
        os.close(self._write_fd)
