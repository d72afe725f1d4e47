"""Stopping in order: admit no more, let requests end or end them, save, say so. Engine thread only."""

from erllama_host.kv.segment import SaveReason
from erllama_host.protocol.calls import Saved
from workers.commands import Answer, Park
from workers.engine.core import Core
from workers.engine.requests import Requests


class Parking:
    """Carries out `Park`. Once parked the engine stays so; what remains is `Stop`."""

    def __init__(self, core: Core, requests: Requests) -> None:
        self._core = core
        self._requests = requests
        self._park: Park | None = None
        self._until = 0.0

    def begin(self, park: Park) -> None:
        """Admit no more; what waits in the queue ends at once, what runs may go on for a while."""
        self._park = park
        self._until = self._core.clock() + park.finish_s
        self._core.parking = park.reason
        self._requests.end_queued(park.reason)

    def advance(self, now: float) -> bool:
        """Finish parking when nothing runs any more, or the time is up. Returns whether anything moved."""
        park, core = self._park, self._core
        if park is None or (core.by_ref and now < self._until):
            return False
        self._requests.end_all(park.reason)
        core.pulse.begin_bounded(park.save_s)
        saved, complete = core.kv.save_all(park.save_s, SaveReason.SHUTDOWN)
        core.mailbox.report(Answer(park.call_id, result=Saved(saved_tokens=saved, complete=complete)))
        self._park = None
        return True
