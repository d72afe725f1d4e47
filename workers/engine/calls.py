"""Calls that need the engine thread, other than inference. Each is answered by exactly one `Answer`. Engine thread only.

What takes long is cut into pieces that run between ticks (embeddings), runs as a request of its own (verify), waits for the store
without blocking (cached_prefix_len), or is prepared by another thread (the hash of an adapter file). Saves are synchronous by
contract, and bounded.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erllama_host.errors import (
    ErllamaError,
    InternalError,
    InvalidRequest,
    NotSupported,
    SessionBusy,
    Timeout,
)
from erllama_host.kv.segment import SaveReason
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import SamplingParams, unpack_tokens
from workers.adapters import AdapterSet
from workers.commands import Answer, EngineCall, Submit
from workers.engine.core import Core
from workers.engine.memory import resident_bytes
from workers.engine.requests import Requests, stopping
from workers.fingerprint import file_sha256
from workers.kv_types import LookupResult, Pending
from workers.sequence import Phase, Request

_Handler = Callable[[EngineCall], None]


@dataclass(frozen=True)
class AdapterHashed:
    """Internal command: the file of a `load_adapter` call has been hashed, or cannot be read."""

    call: EngineCall
    sha256: bytes | None
    problem: str = ""


@dataclass(slots=True, eq=False)
class _Embedding:
    call: EngineCall
    uses: AdapterSet
    todo: deque[list[int]]
    vectors: list[bytes] = field(default_factory=list)


class Calls:
    """See the module docstring."""

    def __init__(self, core: Core, requests: Requests) -> None:
        self._core = core
        self._requests = requests
        self._embeddings: deque[_Embedding] = deque()
        self._verifications: list[tuple[EngineCall, Request]] = []
        self._lookups: list[tuple[EngineCall, int, Pending[LookupResult]]] = []
        self._handlers: dict[str, _Handler] = {
            "embed": self._embed,
            "load_adapter": self._load_adapter,
            "unload_adapter": self._unload_adapter,
            "set_adapter_scale": self._set_adapter_scale,
            "list_adapters": lambda call: self._answer(call, c.AdapterList(adapters=core.adapters.attached())),
            "evict": self._evict,
            "shutdown": self._save,
            "cached_prefix_len": self._cached_prefix_len,
            "end_session": self._end_session,
            "fork": self._fork,
            "verify": self._verify,
        }

    def take(self, call: EngineCall) -> None:
        """Begin a call."""
        handler = self._handlers.get(call.name)
        if handler is None:
            self._refuse(call, InternalError(f"the engine has no call {call.name!r}"))
            return
        try:
            handler(call)
        except ErllamaError as error:
            self._refuse(call, error)

    def advance(self, now: float) -> bool:
        """Go on with calls that take several ticks. Returns whether anything moved."""
        moved = self._advance_embeddings(now)
        moved |= self._advance_verifications(now)
        moved |= self._advance_lookups()
        return moved

    @property
    def waiting(self) -> bool:
        """Whether an answer of the store is outstanding."""
        return bool(self._lookups)

    def _answer(self, call: EngineCall, result: Any) -> None:
        self._core.mailbox.report(Answer(call.call_id, result=result))

    def _refuse(self, call: EngineCall, error: ErllamaError) -> None:
        self._core.mailbox.report(Answer(call.call_id, error=error))

    # --- embeddings ---------------------------------------------------------------------------------------------------

    def _embed(self, call: EngineCall) -> None:
        limit = self._core.backend.limits.max_embed_tokens
        texts = [unpack_tokens(text) for text in call.body.inputs]
        for text in texts:
            if not 0 < len(text) <= limit:
                raise InvalidRequest(
                    f"a text to embed must have 1 to {limit} tokens (n_ubatch), got {len(text)}", field="inputs"
                )
        self._embeddings.append(_Embedding(call, self._core.adapters.snapshot(None), deque(texts)))

    def _advance_embeddings(self, now: float) -> bool:
        """One computation of at most `max_embed_tokens` tokens, so that streams wait for no more than that."""
        if not self._embeddings:
            return False
        # All of them: nobody waits for what is late, and it would pile up behind a long one.
        for late in [one for one in self._embeddings if one.call.deadline is not None and now >= one.call.deadline]:
            self._end_embedding(late)
            self._refuse(late.call, Timeout("the texts were not embedded before the deadline"))
        if not self._embeddings:
            return True
        job = self._embeddings[0]
        try:
            self._embed_some(job)
        except ErllamaError as error:
            self._end_embedding(job)
            self._refuse(job.call, error)
            return True
        if not job.todo:
            self._end_embedding(job)
            width = len(job.vectors[0]) // 4 if job.vectors else self._core.backend.info.n_embd
            self._answer(job.call, c.Vectors(vectors=job.vectors, n_embd=width))
        return True

    def _end_embedding(self, job: _Embedding) -> None:
        self._embeddings.remove(job)
        self._core.adapters.release(job.uses)

    def _embed_some(self, job: _Embedding) -> None:
        room, batch = self._core.backend.limits.max_embed_tokens, []
        while job.todo and len(job.todo[0]) <= room:
            room -= len(job.todo[0])
            batch.append(job.todo.popleft())
        if batch:
            self._core.adapters.apply(job.uses)
            vectors = self._timed_embed(batch, job.call.body.normalize)
            job.vectors += [vector.astype("<f4").tobytes() for vector in vectors]
            self._core.counters["embedded_texts"] += len(batch)

    def _timed_embed(self, batch: list[list[int]], normalize: bool) -> list[NDArray[np.float32]]:
        core, num_tokens = self._core, sum(map(len, batch))
        core.pulse.begin(num_tokens * core.rates.embedding_token_s)
        started = core.clock()
        vectors = core.backend.embed(batch, normalize=normalize)
        core.rates.note_embedding(num_tokens, core.clock() - started)
        return vectors

    # --- adapters -----------------------------------------------------------------------------------------------------

    def _load_adapter(self, call: EngineCall) -> None:
        """Hash the file elsewhere: it may take longer than a stream can wait."""
        threading.Thread(target=self._hash_adapter, args=(call,), name="adapter-hash", daemon=True).start()

    def _hash_adapter(self, call: EngineCall) -> None:
        try:
            hashed = AdapterHashed(call, file_sha256(Path(call.body.path)))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            hashed = AdapterHashed(call, None, f"cannot read adapter {call.body.path!r}: {reason}")
        self._core.mailbox.post_internal(hashed)

    def adapter_hashed(self, hashed: AdapterHashed) -> None:
        """The second half of `load_adapter`."""
        call = hashed.call
        if hashed.sha256 is None:
            self._refuse(call, InvalidRequest(hashed.problem, field="path"))
            return
        try:
            self._core.pulse.begin_bounded(self._core.config.load_timeout_s)
            self._answer(call, self._core.adapters.load(call.body.path, hashed.sha256, call.body.scale))
        except ErllamaError as error:
            self._refuse(call, error)

    def _unload_adapter(self, call: EngineCall) -> None:
        self._core.adapters.unload(call.body.handle)
        self._answer(call, c.Ok())

    def _set_adapter_scale(self, call: EngineCall) -> None:
        self._core.adapters.set_scale(call.body.handle, call.body.scale)
        self._answer(call, c.Ok())

    # --- memory -------------------------------------------------------------------------------------------------------

    def _evict(self, call: EngineCall) -> None:
        saved, _ = self._save_all(self._time_limit(call), SaveReason.EVICT)
        if self._core.by_ref:
            self._core.drop_when_idle = True
            self._answer(call, c.Evicted(freed_bytes=0, deferred=True, saved_tokens=saved))
        else:
            self._answer(call, c.Evicted(freed_bytes=self.drop_context(), deferred=False, saved_tokens=saved))

    def drop_when_idle(self) -> None:
        """Carry out an `evict` that had to wait, after a save of what was computed meanwhile."""
        core = self._core
        if core.drop_when_idle:
            self._save_all(core.config.evict_save_timeout_s, SaveReason.EVICT)
            self.drop_context()

    def drop_context(self) -> int:
        """Give the context's memory back; returns how many bytes that was, by the system's account where it has one."""
        core = self._core
        core.drop_when_idle = False
        before, held = resident_bytes(), core.backend.footprint()
        core.backend.drop_context()
        core.pool.forget_all()
        core.counters["contexts_dropped"] += 1
        host = before - resident_bytes()
        device = held.device_context_bytes - core.backend.footprint().device_context_bytes
        return max(0, host) + max(0, device)

    def _save(self, call: EngineCall) -> None:
        saved, complete = self._save_all(self._time_limit(call), SaveReason.SHUTDOWN)
        self._answer(call, c.Saved(saved_tokens=saved, complete=complete))

    def _save_all(self, limit_s: float, reason: SaveReason) -> tuple[int, bool]:
        self._core.pulse.begin_bounded(limit_s)
        return self._core.kv.save_all(limit_s, reason)

    def _time_limit(self, call: EngineCall) -> float:
        """Seconds a synchronous save may take: the caller's limit, its deadline, the model's own."""
        limits = [self._core.config.evict_save_timeout_s]
        if call.body is not None and getattr(call.body, "timeout_s", None) is not None:
            limits.append(call.body.timeout_s)
        if call.deadline is not None:
            limits.append(call.deadline - self._core.clock())
        return max(0.0, min(limits))

    # --- questions about the cache ------------------------------------------------------------------------------------

    def _cached_prefix_len(self, call: EngineCall) -> None:
        core = self._core
        tokens = unpack_tokens(call.body.tokens)
        if not tokens:
            raise InvalidRequest("tokens must not be empty", field="tokens")
        uses = core.adapters.snapshot(None)
        space = core.space(uses)
        core.adapters.release(uses)
        match = core.pool.cells.best_match(call.body.tokens, space, len(tokens))
        live = match.length if match is not None else 0
        pending = core.kv.ask_length(call.body.tokens, space) if live < len(tokens) else None
        if pending is None:
            self._answer(call, c.Length(length=live))
        else:
            self._lookups.append((call, live, pending))

    def _advance_lookups(self) -> bool:
        moved = False
        for entry in [one for one in self._lookups if one[2].done()]:
            call, live, pending = entry
            self._lookups.remove(entry)
            found = pending.result()
            self._answer(call, c.Length(length=max(live, found.hit_len)))
            self._core.kv.release(found)
            moved = True
        return moved

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _end_session(self, call: EngineCall) -> None:
        """Unpin; the sequence stays as ordinary live cache. An unknown session is fine."""
        pinned = self._core.pool.cells.in_session(call.body.session_id)
        if pinned is not None:
            pinned.session = None
        self._answer(call, c.Ok())

    def _fork(self, call: EngineCall) -> None:
        """Pin a copy of a session's sequence under another name; the copy shares its cells."""
        name, core = call.body.session_id, self._core
        copy = call.body.new_session_id or f"{name}-fork-{time.monotonic_ns():x}"
        for one in (name, copy):
            if self._requests.session_is_busy(one):
                raise SessionBusy(f"a request of session {one!r} is in flight")
        if copy == name or core.pool.cells.in_session(copy) is not None:
            raise InvalidRequest(f"session {copy!r} exists already", field="new_session_id")
        source = core.pool.cells.in_session(name)
        if source is not None:
            twin = core.pool.copy(source, core.clock())
            if twin is not None:
                twin.session = copy
        self._answer(call, c.SessionName(session_id=copy))

    # --- verification -------------------------------------------------------------------------------------------------

    def _verify(self, call: EngineCall) -> None:
        """Runs as a request that computes the draft's rows with logits and samples nothing."""
        core = self._core
        tokens, draft = unpack_tokens(call.body.tokens), unpack_tokens(call.body.draft)
        if not tokens:
            raise InvalidRequest("tokens must not be empty", field="tokens")
        if core.backend.info.is_embedding_model:
            raise NotSupported("an embedding model does not generate, so it has nothing to verify")
        core.backend.vocabulary.check_ids(tokens)
        core.backend.vocabulary.check_ids(draft)
        if len(tokens) + len(draft) > core.backend.limits.n_ctx:
            raise InvalidRequest(f"tokens and draft exceed n_ctx {core.backend.limits.n_ctx}", field="draft")
        if core.parking is not None:
            raise stopping()
        submit = Submit(
            ref=f"verify/{call.call_id}", prompt=tokens + draft, params=SamplingParams(), seed=0, max_tokens=0,
            arrived_at=core.clock(), deadline=None,
        )  # fmt: skip
        request = Request(submit, draft_from=len(tokens) - 1)
        self._verifications.append((call, request))
        self._requests.enqueue(request)

    def _advance_verifications(self, now: float) -> bool:
        moved = False
        for entry in list(self._verifications):
            call, request = entry
            late = call.deadline is not None and now >= call.deadline
            computed = request.phase is Phase.PREFILL and request.num_kv == len(request.row)
            if request.phase is not Phase.DONE and not computed and not late:
                continue
            self._verifications.remove(entry)
            if request.phase is not Phase.DONE:
                self._requests.close(request)
            if computed:
                self._answer(call, _verdict(request))
            else:
                self._refuse(call, self._why_not_verified(request))
            moved = True
        return moved

    def _why_not_verified(self, request: Request) -> ErllamaError:
        if request.failure is not None:
            return request.failure
        if self._core.parking is not None:
            return stopping()
        return Timeout("the draft was not verified in time")


def _verdict(request: Request) -> c.Verified:
    assert request.draft_from is not None
    draft = request.submit.prompt[request.draft_from + 1 :]
    accepted = 0
    while accepted < len(draft) and request.choices[accepted] == draft[accepted]:
        accepted += 1
    return c.Verified(accepted=accepted, next_token=request.choices[accepted])
