"""Every message kind in one place: what it carries, what answers it, who may send it. Pure.

Names are never reused for something else. docs/internals/messages.md shows these tables; a test keeps the two equal.
"""

from dataclasses import dataclass
from typing import Any, Literal

from erllama_host.protocol import calls as c
from erllama_host.protocol import inference as i
from erllama_host.protocol import link as k

Role = Literal["user", "admin"]


@dataclass(frozen=True)
class Kind:
    """A request kind.

    Attributes:
        body: type of its body. answer: type of the `reply`; None for kinds without one.
        role: least role of a remote client that may send it.
        events: kinds of what may come before or instead of `reply`, `error` aside.
    """

    body: type[Any]
    answer: type[Any] | None
    role: Role = "user"
    events: tuple[str, ...] = ()


HOST_KINDS: dict[str, Kind] = {
    "hello": Kind(c.Nothing, c.HostHello),
    "load_model": Kind(c.LoadModel, c.ModelInfo, "admin", ("progress",)),
    "unload": Kind(c.ModelRef, c.Ok, "admin"),
    "restart": Kind(c.Restart, c.ModelInfo, "admin", ("progress",)),
    "list_models": Kind(c.Nothing, c.ModelList),
    "model_info": Kind(c.ModelRef, c.ModelInfo),
    "models": Kind(c.Nothing, c.WorkerPids),
    "counters": Kind(c.Nothing, c.Counters),
    "events": Kind(c.Events, c.EventList),
    "host_status": Kind(c.Nothing, c.HostStatus),
    "drain": Kind(c.Drain, c.Ok, "admin"),
    "cache": Kind(c.CacheCall, c.CacheAnswer, "admin"),
}
"""Calls to the host: `model` of the envelope is empty."""

MODEL_KINDS: dict[str, Kind] = {
    "infer": Kind(i.Infer, None, events=("accepted", "tokens", "done")),
    "resume": Kind(i.Resume, None, events=("accepted", "tokens", "done", "lost")),
    "cancel": Kind(i.Cancel, None),
    "credit": Kind(i.Credit, None),
    "status": Kind(c.Nothing, c.ModelStatus),
    "tokenize": Kind(c.Tokenize, c.TokenList),
    "detokenize": Kind(c.Detokenize, c.Text),
    "apply_chat_template": Kind(c.ApplyTemplate, c.Rendered),
    "embed": Kind(c.Embed, c.Vectors),
    "load_adapter": Kind(c.LoadAdapter, c.AdapterInfo, "admin"),
    "unload_adapter": Kind(c.UnloadAdapter, c.Ok, "admin"),
    "set_adapter_scale": Kind(c.SetAdapterScale, c.Ok, "admin"),
    "list_adapters": Kind(c.Nothing, c.AdapterList),
    "evict": Kind(c.Evict, c.Evicted, "admin"),
    "shutdown": Kind(c.Save, c.Saved, "admin"),
    "cached_prefix_len": Kind(c.CachedPrefix, c.Length),
    "end_session": Kind(c.Session, c.Ok),
    "fork": Kind(c.Session, c.SessionName),
    "verify": Kind(c.Verify, c.Verified),
    "draft": Kind(c.Draft, c.TokenList),
    "worker_info": Kind(c.Nothing, c.ModelInfo),
}
"""Requests to a model: `model` of the envelope names it; the controller forwards them unread."""

EVENT_KINDS: dict[str, type[Any]] = {
    "accepted": i.Accepted,
    "tokens": i.Tokens,
    "done": i.Done,
    "lost": i.Lost,
    "moved": i.Moved,
    "error": i.ErrorBody,
    "progress": c.LoadProgress,
}
"""What comes back beside `reply`, whose type is the `answer` of the request's kind."""

LINK_KINDS: dict[str, type[Any]] = {
    "w.hello": k.WorkerHello,
    "w.progress": k.WorkerProgress,
    "w.ready": k.WorkerReady,
    "w.failed": k.WorkerFailed,
    "w.beat": k.WorkerBeat,
    "c.hello": c.Nothing,
    "c.park": k.Park,
    "c.fence": c.Nothing,
}
"""Between worker and controller only; refused when a client sends them."""
