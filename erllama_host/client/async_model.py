"""A handle to one model for asyncio. It holds no state but the id: any number of handles may name the same model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from erllama_host.client import host_calls
from erllama_host.client import model_calls as calls
from erllama_host.client.async_stream import AsyncStream
from erllama_host.client.infer_options import InferOptions, Prompt, infer_request
from erllama_host.client.model_calls import Messages
from erllama_host.client.results import Completion, Prefilled, prefilled
from erllama_host.protocol import calls as c

if TYPE_CHECKING:
    from erllama_host.client.async_client import AsyncClient


class AsyncModel:
    """A model of a host: the methods of `Model`, to be awaited."""

    def __init__(self, client: "AsyncClient", model_id: str) -> None:
        """Use `AsyncClient.model` or `load_model`."""
        self._client = client
        self.model_id = model_id

    def __repr__(self) -> str:
        return f"<AsyncModel {self.model_id!r} at {self._client.endpoint}>"

    # ---- generating ----------------------------------------------------------------------------------------------

    async def complete(self, prompt: Prompt, **options: Unpack[InferOptions]) -> Completion:
        """See `Model.complete`."""
        return await self._client._complete(self.model_id, infer_request(prompt, options))

    def infer(self, prompt: Prompt, **options: Unpack[InferOptions]) -> AsyncStream:
        """See `Model.infer`. Not awaited: `async with model.infer(…) as stream`."""
        return self._client._infer(self.model_id, infer_request(prompt, options))

    async def chat(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[InferOptions],
    ) -> Completion:
        """See `Model.chat`."""
        chat = calls.chat_request(messages, system, tools, template_options)
        return await self._client._complete(self.model_id, infer_request(chat, options))

    def chat_stream(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[InferOptions],
    ) -> AsyncStream:
        """See `Model.chat_stream`. Not awaited."""
        chat = calls.chat_request(messages, system, tools, template_options)
        return self._client._infer(self.model_id, infer_request(chat, options))

    async def prefill_only(self, prompt: Prompt, **options: Unpack[InferOptions]) -> Prefilled:
        """See `Model.prefill_only`."""
        request = infer_request(prompt, {**options, "max_tokens": 0})
        return prefilled(await self._client._complete(self.model_id, request))

    # ---- text and tokens -----------------------------------------------------------------------------------------

    async def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """See `Model.tokenize`."""
        return await self._client._call(calls.tokenize(self.model_id, text, add_special, parse_special))

    async def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """See `Model.detokenize`."""
        return await self._client._call(calls.detokenize(self.model_id, tokens, special))

    async def apply_chat_template(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """See `Model.apply_chat_template`."""
        chat = calls.chat_request(messages, system, tools, template_options, add_generation_prompt)
        return await self._client._call(calls.apply_chat_template(self.model_id, chat))

    @overload
    async def embed(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; the first signature wins
        self, inputs: str | Sequence[int], *, normalize: bool = False
    ) -> list[float]: ...
    @overload
    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, normalize: bool = False
    ) -> list[list[float]]: ...
    async def embed(self, inputs: Any, *, normalize: bool = False) -> Any:
        """See `Model.embed`."""
        return await self._client._call(calls.embed(self.model_id, inputs, normalize))

    # ---- adapters ------------------------------------------------------------------------------------------------

    async def load_adapter(self, path: str | Path, scale: float = 1.0) -> c.AdapterInfo:
        """See `Model.load_adapter`."""
        call = calls.load_adapter(self.model_id, str(path), scale, self._client.local)
        return await self._client._call(call)

    async def unload_adapter(self, adapter: str | c.AdapterInfo) -> None:
        """See `Model.unload_adapter`."""
        await self._client._call(calls.unload_adapter(self.model_id, adapter))

    async def set_adapter_scale(self, adapter: str | c.AdapterInfo, scale: float) -> None:
        """See `Model.set_adapter_scale`."""
        await self._client._call(calls.set_adapter_scale(self.model_id, adapter, scale))

    async def list_adapters(self) -> list[c.AdapterInfo]:
        """See `Model.list_adapters`."""
        return await self._client._call(calls.list_adapters(self.model_id))

    # ---- sessions and the cache ----------------------------------------------------------------------------------

    async def end_session(self, session_id: str) -> None:
        """See `Model.end_session`."""
        await self._client._call(calls.end_session(self.model_id, session_id))

    async def fork(self, session_id: str, new_session_id: str | None = None) -> str:
        """See `Model.fork`."""
        return await self._client._call(calls.fork(self.model_id, session_id, new_session_id))

    async def cached_prefix_len(self, tokens: Sequence[int]) -> int:
        """See `Model.cached_prefix_len`."""
        return await self._client._call(calls.cached_prefix_len(self.model_id, tokens))

    async def evict(self, *, timeout_s: float | None = None) -> c.Evicted:
        """See `Model.evict`."""
        return await self._client._call(calls.evict(self.model_id, timeout_s))

    async def shutdown(self, *, timeout_s: float | None = None) -> c.Saved:
        """See `Model.shutdown`."""
        return await self._client._call(calls.shutdown(self.model_id, timeout_s))

    async def verify(self, tokens: Sequence[int], draft: Sequence[int]) -> c.Verified:
        """See `Model.verify`."""
        return await self._client._call(calls.verify(self.model_id, tokens, draft))

    async def draft(self, tokens: Sequence[int], n: int = 8) -> list[int]:
        """See `Model.draft`."""
        return await self._client._call(calls.draft(self.model_id, tokens, n))

    # ---- the model itself ----------------------------------------------------------------------------------------

    async def status(self) -> str:
        """See `Model.status`."""
        return await self._client._call(calls.status(self.model_id))

    async def info(self) -> c.ModelInfo:
        """See `Model.info`."""
        return await self._client._call(host_calls.model_info(self.model_id))

    async def pending_len(self) -> int:
        """See `Model.pending_len`."""
        return (await self.info()).pending

    async def queue_depth(self) -> int:
        """See `Model.queue_depth`."""
        return (await self.info()).queue_depth

    async def last_cache_hit(self) -> str | None:
        """See `Model.last_cache_hit`."""
        return (await self.info()).last_cache_hit

    async def restart(self, *, wait: bool = True) -> c.ModelInfo:
        """See `Model.restart`."""
        return await self._client._call(host_calls.restart(self.model_id, wait))

    async def unload(self) -> None:
        """See `Model.unload`."""
        await self._client._call(host_calls.unload(self.model_id))
