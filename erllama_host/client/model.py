"""A handle to one model. It holds no state but the id: any number of handles may name the same model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from erllama_host.client import host_calls
from erllama_host.client import model_calls as calls
from erllama_host.client.infer_options import InferOptions, Prompt, infer_request
from erllama_host.client.model_calls import Messages
from erllama_host.client.results import Completion, Prefilled, prefilled
from erllama_host.client.stream import Stream
from erllama_host.protocol import calls as c

if TYPE_CHECKING:
    from erllama_host.client.client import Client


class Model:
    """A model of a host, by its id. Made by `Client.model` and `Client.load_model`."""

    def __init__(self, client: "Client", model_id: str) -> None:
        """Use `Client.model` or `load_model`."""
        self._client = client
        self.model_id = model_id

    def __repr__(self) -> str:
        return f"<Model {self.model_id!r} at {self._client.endpoint}>"

    # ---- generating ----------------------------------------------------------------------------------------------

    def complete(self, prompt: Prompt, **options: Unpack[InferOptions]) -> Completion:
        """Answer a prompt.

        Args:
            prompt: text or token ids; always the whole conversation.
            options: see `InferOptions`; greedy when nothing is said.
        Raises:
            InvalidRequest: an option or the prompt is wrong. ContextOverflow: the prompt does not fit.
            QueueFull: too many requests wait. ModelFailed, ModelNotLoaded, WorkerDied, Timeout, HostUnavailable.
        """
        return self._client._complete(self.model_id, infer_request(prompt, options))

    def infer(self, prompt: Prompt, **options: Unpack[InferOptions]) -> Stream:
        """Answer a prompt, piece by piece. Returns at once; errors of the host are raised by the iteration.

        Raises:
            InvalidRequest: an option or the prompt is wrong.
        """
        return self._client._infer(self.model_id, infer_request(prompt, options))

    def chat(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[InferOptions],
    ) -> Completion:
        """Answer a conversation, rendered by the model's own template.

        Args:
            messages: mappings with `role` and `content`. system: shorthand for a first message of that role.
            tools: descriptions handed to the template. template_options: further variables for it, e.g. `enable_thinking`.
            options: as for `complete`.
        Raises:
            NotSupported: the model has no template, or it does not end. Further as `complete`.
        """
        chat = calls.chat_request(messages, system, tools, template_options)
        return self._client._complete(self.model_id, infer_request(chat, options))

    def chat_stream(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[InferOptions],
    ) -> Stream:
        """As `chat`, piece by piece."""
        chat = calls.chat_request(messages, system, tools, template_options)
        return self._client._infer(self.model_id, infer_request(chat, options))

    def prefill_only(self, prompt: Prompt, **options: Unpack[InferOptions]) -> Prefilled:
        """Compute a prompt and save it, without answering: later requests that begin with it start warm."""
        request = infer_request(prompt, {**options, "max_tokens": 0})
        return prefilled(self._client._complete(self.model_id, request))

    # ---- text and tokens -----------------------------------------------------------------------------------------

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Text → token ids, by the rule of text prompts: `add_special` adds BOS as the model wants.

        `parse_special` reads `<|…|>` as special tokens. Answered while completions run.
        """
        return self._client._call(calls.tokenize(self.model_id, text, add_special, parse_special))

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Token ids → text; `special` shows special tokens.

        Raises:
            InvalidRequest: an id that the model does not have.
        """
        return self._client._call(calls.detokenize(self.model_id, tokens, special))

    def apply_chat_template(
        self,
        messages: Messages,
        system: str | None = None,
        tools: Messages | None = None,
        template_options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """A conversation → token ids, by the template in the model's file.

        `add_generation_prompt` ends with the opening of an answer; otherwise as `chat`.

        Raises:
            NotSupported: the model has no template, or it fails or does not end.
        """
        chat = calls.chat_request(messages, system, tools, template_options, add_generation_prompt)
        return self._client._call(calls.apply_chat_template(self.model_id, chat))

    @overload
    def embed(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; the first signature wins
        self, inputs: str | Sequence[int], *, normalize: bool = False
    ) -> list[float]: ...
    @overload
    def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, normalize: bool = False
    ) -> list[list[float]]: ...
    def embed(self, inputs: Any, *, normalize: bool = False) -> Any:
        """Embedding of a text or of token ids, or a list of them for a list: pooled, of unit length if `normalize`.

        Raises:
            NotSupported: the model cannot embed.
        """
        return self._client._call(calls.embed(self.model_id, inputs, normalize))

    # ---- adapters ------------------------------------------------------------------------------------------------

    def load_adapter(self, path: str | Path, scale: float = 1.0) -> c.AdapterInfo:
        """Attach a LoRA GGUF, for requests that come after. Its content and scale split the cache.

        Raises:
            InvalidRequest, NotSupported: the file cannot be used; says why.
        """
        call = calls.load_adapter(self.model_id, str(path), scale, self._client.local)
        return self._client._call(call)

    def unload_adapter(self, adapter: str | c.AdapterInfo) -> None:
        """Detach an adapter; idempotent. It is freed after the last request that uses it."""
        self._client._call(calls.unload_adapter(self.model_id, adapter))

    def set_adapter_scale(self, adapter: str | c.AdapterInfo, scale: float) -> None:
        """Change an adapter's scale, for requests that come after."""
        self._client._call(calls.set_adapter_scale(self.model_id, adapter, scale))

    def list_adapters(self) -> list[c.AdapterInfo]:
        """Adapters that are attached, with their scales."""
        return self._client._call(calls.list_adapters(self.model_id))

    # ---- sessions and the cache ----------------------------------------------------------------------------------

    def end_session(self, session_id: str) -> None:
        """Let go of what a session keeps in the model's process."""
        self._client._call(calls.end_session(self.model_id, session_id))

    def fork(self, session_id: str, new_session_id: str | None = None) -> str:
        """Copy a session, so that two conversations can go on from here; returns the copy's id."""
        return self._client._call(calls.fork(self.model_id, session_id, new_session_id))

    def cached_prefix_len(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a prompt would be read from the cache."""
        return self._client._call(calls.cached_prefix_len(self.model_id, tokens))

    def evict(self, *, timeout_s: float | None = None) -> c.Evicted:
        """Save everything live, then give the memory of the context back; the model stays usable and sessions valid."""
        return self._client._call(calls.evict(self.model_id, timeout_s))

    def shutdown(self, *, timeout_s: float | None = None) -> c.Saved:
        """Save everything live; the model stays loaded. Bounded by `evict_save_timeout_s` of the model, or `timeout_s`."""
        return self._client._call(calls.shutdown(self.model_id, timeout_s))

    def verify(self, tokens: Sequence[int], draft: Sequence[int]) -> c.Verified:
        """How many tokens of `draft` the model itself, greedy, would have written after `tokens`, and the token after them."""
        return self._client._call(calls.verify(self.model_id, tokens, draft))

    def draft(self, tokens: Sequence[int], n: int = 8) -> list[int]:
        """Propose up to `n` tokens after `tokens`, by looking for their end earlier in them. Costs no computing."""
        return self._client._call(calls.draft(self.model_id, tokens, n))

    # ---- the model itself ----------------------------------------------------------------------------------------

    def status(self) -> str:
        """`idle`, `prefilling` or `generating`; around these `loading`, `restarting`, `stopping`, `failed`."""
        return self._client._call(calls.status(self.model_id))

    def info(self) -> c.ModelInfo:
        """Everything known of the model."""
        return self._client._call(host_calls.model_info(self.model_id))

    def pending_len(self) -> int:
        """Requests queued or running."""
        return self.info().pending

    def queue_depth(self) -> int:
        """Requests queued."""
        return self.info().queue_depth

    def last_cache_hit(self) -> str | None:
        """What the cache did for the last request: `cold`, `partial`, `exact` or `live`; None before the first."""
        return self.info().last_cache_hit

    def restart(self, *, wait: bool = True) -> c.ModelInfo:
        """Restart the model's process, also one that was given up; its streams go on afterwards."""
        return self._client._call(host_calls.restart(self.model_id, wait))

    def unload(self) -> None:
        """See `Client.unload`."""
        self._client._call(host_calls.unload(self.model_id))
