"""What callers get back: pieces of a stream, its statistics, and whole completions. Frozen values, pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from erllama_host.protocol.inference import CacheReport, Done, Stats, TokenLogprobs, unpack_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer, as soon as it is final.

    Attributes:
        text: never half a UTF-8 character, never part of a stop string; may be empty while text is held back.
        token_ids: ids that came with it. The ids of all pieces, in order, are the answer.
        seq: index of the first of `token_ids` in the answer, from 0.
        channel: `text`, `thinking` or `tool_call`.
        logprobs: one per id when asked for, else None.
    """

    text: str
    token_ids: list[int]
    seq: int
    channel: str = "text"
    logprobs: list[TokenLogprobs] | None = None


class StreamStats(Stats, kw_only=True, omit_defaults=True, frozen=True):
    """How a request went: the worker's times and counts, and what the client saw.

    Attributes:
        finish_reason: `stop` (end token), `stop_string`, `length`, `context`, `cancelled`, `prefill`.
        finish_key: key of the finished row, for `parent_key` of the next turn; None when it was not saved.
        finish_len: tokens of that row.
        cancelled, cancel_reason: whether it was cut off, and by whom: `client`, `unload`, `deadline`, `lost_client`, `shutdown`.
        cache: what the cache did.
        resumes: how often the request was taken up again after a failure.
        client_ttft_ms, client_total_ms: from the call to the first token and to the end, as the client measured.
    """

    finish_reason: str = ""
    finish_key: bytes | None = None
    finish_len: int = 0
    cancelled: bool = False
    cancel_reason: str | None = None
    cache: CacheReport = CacheReport()
    resumes: int = 0
    client_ttft_ms: float = 0.0
    client_total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """How a stream ended, with the ids it was made of (packed)."""

    stats: StreamStats
    prompt: bytes = b""
    generated: bytes = b""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer.

    Attributes:
        text: the answer, without what was thought and without tool calls.
        tokens: prompt and answer, to be continued as the next prompt.
        generated: the answer's ids.
        finish_reason, finish_key, finish_len, cache: as in `StreamStats`.
        stats: times and counts.
        thinking, tool_calls: text of these channels, as the model wrote it.
        logprobs: one per generated id when asked for, else None.
        resumes: how often the request was taken up again after a failure.
        cancelled, cancel_reason: whether it was cut off.
    """

    text: str
    tokens: list[int]
    generated: list[int]
    finish_reason: str
    finish_key: bytes | None
    finish_len: int
    cache: CacheReport
    stats: StreamStats
    thinking: str = ""
    tool_calls: str = ""
    logprobs: list[TokenLogprobs] | None = None
    resumes: int = 0
    cancelled: bool = False
    cancel_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt that was computed and saved without answering it; `finish_key` is its row, of `finish_len` tokens."""

    finish_key: bytes | None
    finish_len: int
    cache: CacheReport
    stats: StreamStats


@dataclass(slots=True)
class Transcript:
    """Collects the pieces of one stream."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    logprobs: list[TokenLogprobs] | None = None

    def add(self, pieces: Iterable[Piece]) -> int:
        """Append; returns how many ids came."""
        count = 0
        for piece in pieces:
            count += len(piece.token_ids)
            self.texts.setdefault(piece.channel, []).append(piece.text)
            if piece.logprobs is not None:
                if self.logprobs is None:
                    self.logprobs = []
                self.logprobs += piece.logprobs
        return count

    def completion(self, end: StreamEnd) -> Completion:
        """The whole answer."""
        prompt, generated, stats = unpack_tokens(end.prompt), unpack_tokens(end.generated), end.stats
        return Completion(
            text=self._text("text"),
            tokens=prompt + generated,
            generated=generated,
            finish_reason=stats.finish_reason,
            finish_key=stats.finish_key,
            finish_len=stats.finish_len,
            cache=stats.cache,
            stats=stats,
            thinking=self._text("thinking"),
            tool_calls=self._text("tool_call"),
            logprobs=self.logprobs,
            resumes=stats.resumes,
            cancelled=stats.cancelled,
            cancel_reason=stats.cancel_reason,
        )

    def _text(self, channel: str) -> str:
        return "".join(self.texts.get(channel, ()))


def prefilled(completion: Completion) -> Prefilled:
    """What is left of a completion that generated nothing."""
    return Prefilled(completion.finish_key, completion.finish_len, completion.cache, completion.stats)


def stats_of(done: Done, *, generated: int, resumes: int, ttft_ms: float, total_ms: float) -> StreamStats:
    """Join what the worker reported last with what the client counted over all attempts."""
    worker = {name: getattr(done.stats, name) for name in Stats.__struct_fields__}
    return StreamStats(
        **{**worker, "generated_tokens": generated},
        finish_reason=done.finish_reason,
        finish_key=done.finish_key,
        finish_len=done.finish_len,
        cancelled=done.cancelled,
        cancel_reason=done.cancel_reason,
        cache=done.cache,
        resumes=resumes,
        client_ttft_ms=ttft_ms,
        client_total_ms=total_ms,
    )
