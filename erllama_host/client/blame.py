"""How many deaths of workers are held against a request. Pure; owned by its stream.

A request that ends the process would do so for ever, and take its neighbours along. A request that only stood in the queue, or ran
beside others, may have had nothing to do with it. So two deaths in a row without a new token are counted without a look at that:
then the worker runs the request alone, and says so. Further ones count only if it did run alone.
"""

_DEATHS_ALONE = 2
"""After so many deaths the worker runs a request with no other beside it."""


class Blame:
    """Deaths in a row without a new token. `runs_alone`: whether the worker has said so of the current attempt."""

    def __init__(self) -> None:
        self.num_deaths = 0
        self.runs_alone = False

    def on_death(self) -> None:
        """The worker died while it had the request."""
        if self.num_deaths < _DEATHS_ALONE or self.runs_alone:
            self.num_deaths += 1

    def on_token(self) -> None:
        """A new token came: whatever it was, it got further."""
        self.num_deaths = 0
