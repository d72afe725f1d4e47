"""How patient the client is: with a stream, with a call, with a host that does not answer. Pure."""

from dataclasses import dataclass

from erllama_host.protocol.inference import CLIENT_SIGN_OF_LIFE_S, INITIAL_CREDIT_TOKENS, SILENCE_BEFORE_RESUME_S


@dataclass(frozen=True)
class StreamLimits:
    """How patient a stream is.

    Attributes:
        window: tokens a worker may send before the reader has read them. grant_at: credit is granted in chunks of so many.
        silence_s: so long without an event, and the client asks. sign_of_life_s: it says something at least so often.
        ask_again_s: no two `resume` for the same index within it.
        mute_s: no event at all in spite of asking: the stream fails.
        cancel_s: after so long, a cancelled stream ends without the worker's consent.
        deadline_margin_s: the worker ends a late request itself; the client only if nothing came so long after.
        retry_s: wait where the host gives no estimate. max_retry_s: bound of what it may give.
        max_resumes: resumptions in a row without a new token; 0 forbids them.
    """

    window: int = INITIAL_CREDIT_TOKENS
    grant_at: int = INITIAL_CREDIT_TOKENS // 4
    silence_s: float = SILENCE_BEFORE_RESUME_S
    sign_of_life_s: float = CLIENT_SIGN_OF_LIFE_S
    ask_again_s: float = 0.25
    mute_s: float = 120.0
    cancel_s: float = 10.0
    deadline_margin_s: float = 3.0
    retry_s: float = 0.5
    max_retry_s: float = 5.0
    max_resumes: int = 3


@dataclass(frozen=True)
class Patience:
    """How long an exchange waits while there is no connection.

    Attributes:
        connect_s: nothing listens at the endpoint. accept_s: something does, but the handshake does not end.
        grace_s: the host was there before and may come back.
    """

    connect_s: float = 1.5
    accept_s: float = 10.0
    grace_s: float = 30.0

    def give_up_at(self, started_at: float, offline_since: float, was_online: bool, accepted: bool) -> float:
        """When an exchange that began at `started_at` gives up on a host that has been away since `offline_since`."""
        first = started_at + (self.accept_s if accepted else self.connect_s)
        return max(first, offline_since + self.grace_s) if was_online else first


def spread(ref: str) -> float:
    """A number in [0, 1) that differs from ref to ref: retries of many requests must not come at the same time."""
    return int(ref[-8:], 16) / 2**32
