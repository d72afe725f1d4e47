"""Numbers that name leases, reservations and temporary files within one life of the daemon. Pure."""


class Numbers:
    """Counts up from a number that is random per life, so that what an earlier life gave out never names anything of this one."""

    def __init__(self, first: int) -> None:
        self._next = first

    def next(self) -> int:
        """The next number."""
        self._next += 1
        return self._next - 1
