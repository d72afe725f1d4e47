"""Why keys are not there any more: a bounded memory, so that a miss can be explained. Pure."""

from collections import OrderedDict

from erllama_host.kv.reuse import MissReason

MAX_GHOSTS = 65_536
"""About 10 MB of memory; the oldest are forgotten, and their misses then read `never_seen`."""


class Ghosts:
    """Keys that were stored, or refused, and are not there now."""

    def __init__(self, max_ghosts: int = MAX_GHOSTS) -> None:
        self._max_ghosts = max_ghosts
        self._reasons: OrderedDict[bytes, MissReason] = OrderedDict()

    def add(self, key: bytes, reason: MissReason) -> None:
        """Remember why `key` is missing."""
        self._reasons[key] = reason
        self._reasons.move_to_end(key)
        if len(self._reasons) > self._max_ghosts:
            self._reasons.popitem(last=False)

    def forget(self, key: bytes) -> None:
        """`key` is there (again)."""
        self._reasons.pop(key, None)

    def reason(self, key: bytes) -> MissReason | None:
        """Why `key` is missing, if it is remembered."""
        return self._reasons.get(key)
