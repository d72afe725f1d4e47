"""Calls to one model as values: what each asks, and what its answer means. Pure; `Model` and `AsyncModel` carry them out."""

import sys
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erllama_host.client.call_state import Call
from erllama_host.client.host_calls import nothing, same
from erllama_host.client.infer_options import packed
from erllama_host.errors import InvalidRequest
from erllama_host.protocol import calls as c
from erllama_host.protocol.inference import ChatRequest, unpack_tokens

SAVE_TIMEOUT_S = 120.0
"""Bound of waiting for evict and shutdown; the host bounds the save itself by evict_save_timeout_s."""

Messages = Sequence[Mapping[str, Any]]


def status(model: str) -> Call[str]:
    """What the model is doing; also while it loads."""
    return Call("status", _status, model, wait_while_loading=False)


def tokenize(model: str, text: str, add_special: bool, parse_special: bool) -> Call[list[int]]:
    """Text → ids."""
    body = c.Tokenize(text=text, add_special=add_special, parse_special=parse_special)
    return Call("tokenize", _tokens, model, body)


def detokenize(model: str, tokens: Sequence[int], special: bool) -> Call[str]:
    """Ids → text."""
    return Call("detokenize", _text, model, c.Detokenize(tokens=packed(tokens), special=special))


def chat_request(
    messages: Messages,
    system: str | None,
    tools: Messages | None,
    template_options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> ChatRequest:
    """A conversation for the model's template.

    Raises:
        InvalidRequest: messages or tools are not a list of mappings.
    """
    for name, items in (("messages", messages), ("tools", tools or [])):
        if isinstance(items, str | Mapping) or not all(isinstance(item, Mapping) for item in items):
            raise InvalidRequest(f"{name} must be a list of mappings", field=name)
    return ChatRequest(
        messages=[dict(message) for message in messages],
        system=system,
        tools=None if tools is None else [dict(tool) for tool in tools],
        add_generation_prompt=add_generation_prompt,
        template_options=dict(template_options or {}),
    )


def apply_chat_template(model: str, chat: ChatRequest) -> Call[list[int]]:
    """A conversation → ids."""
    return Call("apply_chat_template", _tokens, model, c.ApplyTemplate(chat=chat))


def embed(
    model: str, inputs: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]], normalize: bool
) -> Call[Any]:
    """Vectors: one for a text or a list of ids, a list of them for a list of texts or of lists of ids.

    Raises:
        InvalidRequest: nothing to embed, or texts and ids in one batch.
    """
    if len(inputs) == 0:
        raise InvalidRequest("there is nothing to embed", field="inputs")
    single = isinstance(inputs, str) or isinstance(inputs[0], int)
    batch: list[Any] = [inputs] if single else list(inputs)
    if all(isinstance(item, str) for item in batch):
        body = c.Embed(texts=batch, normalize=normalize)
    elif any(isinstance(item, str) for item in batch):
        raise InvalidRequest("a batch is either all texts or all lists of ids", field="inputs")
    else:
        body = c.Embed(tokens=[packed(item) for item in batch], normalize=normalize)
    return Call("embed", _vector if single else _vectors, model, body, timeout_s=600.0)


def load_adapter(model: str, path: str, scale: float, local: bool) -> Call[c.AdapterInfo]:
    """Attach a LoRA GGUF."""
    path = str(Path(path).absolute()) if local else path
    return Call("load_adapter", same, model, c.LoadAdapter(path=path, scale=scale), timeout_s=SAVE_TIMEOUT_S)


def unload_adapter(model: str, adapter: str | c.AdapterInfo) -> Call[None]:
    """Detach it."""
    return Call("unload_adapter", nothing, model, c.UnloadAdapter(handle=handle_of(adapter)))


def set_adapter_scale(model: str, adapter: str | c.AdapterInfo, scale: float) -> Call[None]:
    """Change its scale."""
    return Call("set_adapter_scale", nothing, model, c.SetAdapterScale(handle=handle_of(adapter), scale=scale))


def list_adapters(model: str) -> Call[list[c.AdapterInfo]]:
    """What is attached."""
    return Call("list_adapters", _adapters, model)


def handle_of(adapter: str | c.AdapterInfo) -> str:
    """An adapter's handle."""
    return adapter if isinstance(adapter, str) else adapter.handle


def evict(model: str, timeout_s: float | None) -> Call[c.Evicted]:
    """Save, then give memory back."""
    return Call("evict", same, model, c.Evict(timeout_s=timeout_s), timeout_s=SAVE_TIMEOUT_S + (timeout_s or 0))


def shutdown(model: str, timeout_s: float | None) -> Call[c.Saved]:
    """Save everything live."""
    return Call("shutdown", same, model, c.Save(timeout_s=timeout_s), timeout_s=SAVE_TIMEOUT_S + (timeout_s or 0))


def cached_prefix_len(model: str, tokens: Sequence[int]) -> Call[int]:
    """How much of a prompt is cached."""
    return Call("cached_prefix_len", _length, model, c.CachedPrefix(tokens=packed(tokens)))


def end_session(model: str, session_id: str) -> Call[None]:
    """Let go of a session."""
    return Call("end_session", nothing, model, c.Session(session_id=session_id))


def fork(model: str, session_id: str, new_session_id: str | None) -> Call[str]:
    """Copy a session."""
    return Call("fork", _session, model, c.Session(session_id=session_id, new_session_id=new_session_id))


def verify(model: str, tokens: Sequence[int], draft: Sequence[int]) -> Call[c.Verified]:
    """How much of a draft the model agrees with."""
    return Call("verify", same, model, c.Verify(tokens=packed(tokens), draft=packed(draft)), timeout_s=600.0)


def draft(model: str, tokens: Sequence[int], n: int) -> Call[list[int]]:
    """Propose a continuation by prompt lookup."""
    return Call("draft", _tokens, model, c.Draft(tokens=packed(tokens), n=n))


def _status(answer: c.ModelStatus) -> str:
    return answer.status


def _tokens(answer: c.TokenList | c.Rendered) -> list[int]:
    return unpack_tokens(answer.tokens)


def _text(answer: c.Text) -> str:
    return answer.text


def _adapters(answer: c.AdapterList) -> list[c.AdapterInfo]:
    return answer.adapters


def _length(answer: c.Length) -> int:
    return answer.length


def _session(answer: c.SessionName) -> str:
    return answer.session_id


def _vectors(answer: c.Vectors) -> list[list[float]]:
    return [_floats(vector) for vector in answer.vectors]


def _vector(answer: c.Vectors) -> list[float]:
    return _floats(answer.vectors[0])


def _floats(data: bytes) -> list[float]:
    """Little-endian f32 → floats."""
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
