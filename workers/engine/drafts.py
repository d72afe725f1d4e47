"""Prompt-lookup speculation of running streams: whose next tokens are guessed, and when it is given up. Engine thread only."""

from collections.abc import Sequence

from workers.engine.core import Core
from workers.sequence import Phase, Request
from workers.speculation import PAUSE_TICKS, propose

MAX_STREAMS = 2
"""Beside more streams a decode is no longer bound by reading weights, so guessed rows cost what they might save."""


class Drafts:
    """Proposes draft tokens where the model option `prompt_lookup` is set and its sequences can be cut."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._most = core.config.prompt_lookup if core.backend.info.can_truncate else 0

    @property
    def are_on(self) -> bool:
        """Whether there may be any."""
        return self._most > 0

    def propose(self, ready: Sequence[Request]) -> dict[str, list[int]]:
        """Draft tokens by ref; nothing for a request that would end, or leave its context, within them."""
        streams = [request for request in ready if request.phase is Phase.DECODE]
        if not self._most or not streams or len(streams) > MAX_STREAMS or len(streams) < len(ready):
            return {}
        found: dict[str, list[int]] = {}
        for request in streams:
            if request.draft_pause:
                request.draft_pause -= 1
                continue
            left = request.submit.max_tokens - len(request.generated)
            room = self._core.backend.limits.n_ctx - len(request.row)
            drafts = propose(request.row, min(self._most, left - 1, room))
            if drafts:
                found[request.ref] = drafts
        return found

    def judge(self, request: Request, num_drafts: int, num_right: int) -> None:
        """Count how good a guess was; after a bad one leave it for a while."""
        request.draft_tokens += num_drafts
        request.draft_accepted += num_right
        self._core.counters["draft_tokens"] += num_drafts
        self._core.counters["draft_accepted"] += num_right
        if not num_right:
            request.draft_pause = PAUSE_TICKS
