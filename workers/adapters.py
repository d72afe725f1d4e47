"""The adapters of a model and the sets that requests use. Owned by the engine thread.

A request takes a snapshot of the attached set when it is admitted; later changes are for later requests. An adapter that was
unloaded is freed when the last request that uses it has ended. A handle is made from the adapter file's sha256, so a
respawned worker, and a second load of the same file, have the same one.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from erllama_host.errors import AdapterNotFound, InvalidRequest
from erllama_host.protocol.calls import AdapterInfo
from erllama_host.protocol.inference import AdapterUse
from workers.backend.base import Backend
from workers.backend.values import LoraHandle

_HANDLE_DIGITS = 12
MAX_SCALE = 1e6
"""Far beyond any use; scales are part of cache keys as 64-bit fixed point, which ends at 2**31."""


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters with scales, in a canonical order; hashable, so that it names what may share a decode."""

    uses: tuple[AdapterUse, ...] = ()

    @property
    def handles(self) -> tuple[str, ...]:
        """Handles in the set."""
        return tuple(use.handle for use in self.uses)


NO_ADAPTERS = AdapterSet()


@dataclass(slots=True)
class _Adapter:
    path: str
    sha256: bytes
    lora: LoraHandle
    scale: float
    attached: bool


def handle_of(sha256: bytes) -> str:
    """The handle of an adapter file."""
    return f"lora-{sha256.hex()[:_HANDLE_DIGITS]}"


def check_scale(scale: float) -> None:
    """Raise InvalidRequest unless `scale` is a finite number of a sensible size."""
    if not abs(scale) <= MAX_SCALE:  # also catches nan
        raise InvalidRequest(f"scale must be between -{MAX_SCALE:g} and {MAX_SCALE:g}, got {scale}", field="scale")


class AdapterTable:
    """Loaded adapters, by handle."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loaded: dict[str, _Adapter] = {}
        self._users: Counter[str] = Counter()
        self._attached_now = NO_ADAPTERS

    def load(self, path: str, sha256: bytes, scale: float) -> AdapterInfo:
        """Load and attach, for later requests. Known already: attach again with the new scale.

        Raises:
            InvalidRequest: the file is no adapter for this model, or the scale is not a sensible number.
        """
        check_scale(scale)
        handle = handle_of(sha256)
        known = self._loaded.get(handle)
        if known is None:
            self._loaded[handle] = _Adapter(path, sha256, self._backend.load_adapter(path), scale, True)
        else:
            known.scale, known.attached = scale, True
        return self._info(handle)

    def unload(self, handle: str) -> None:
        """Detach; free it once nobody uses it. An unknown handle is fine."""
        if handle in self._loaded:
            self._loaded[handle].attached = False
            self._free_unused()

    def set_scale(self, handle: str, scale: float) -> None:
        """Change the scale for later requests.

        Raises:
            AdapterNotFound: no such adapter is attached. InvalidRequest: no sensible number.
        """
        check_scale(scale)
        self._find(handle).scale = scale

    def attached(self) -> list[AdapterInfo]:
        """The attached adapters."""
        return [self._info(handle) for handle, adapter in self._loaded.items() if adapter.attached]

    def snapshot(self, uses: Iterable[AdapterUse] | None) -> AdapterSet:
        """The set a request gets: the one it names, or what is attached. It counts as used until `release`.

        Raises:
            AdapterNotFound: a named adapter is not loaded. InvalidRequest: one is named twice, or a scale is no sensible number.
        """
        if uses is None:
            wanted = [AdapterUse(handle, one.scale) for handle, one in self._loaded.items() if one.attached]
        else:
            wanted = list(uses)
            if len({use.handle for use in wanted}) < len(wanted):
                raise InvalidRequest("an adapter is named twice", field="adapters")
            for use in wanted:
                check_scale(use.scale)
                if use.handle not in self._loaded:
                    raise AdapterNotFound(f"no adapter {use.handle!r} is loaded in this model", handle=use.handle)
        chosen = AdapterSet(tuple(sorted((use for use in wanted if use.scale), key=lambda use: use.handle)))
        self._users.update(chosen.handles)
        return chosen

    def release(self, uses: AdapterSet) -> None:
        """A request with this snapshot has ended."""
        self._users.subtract(uses.handles)
        self._free_unused()

    def identity(self, uses: AdapterSet) -> list[tuple[bytes, float]]:
        """(sha256, scale) of each, for the effective fingerprint."""
        return [(self._loaded[use.handle].sha256, use.scale) for use in uses.uses]

    def apply(self, uses: AdapterSet) -> None:
        """Make the backend compute with this set."""
        if uses != self._attached_now:
            self._backend.attach([(self._loaded[use.handle].lora, use.scale) for use in uses.uses])
            self._attached_now = uses

    def _free_unused(self) -> None:
        for handle, adapter in list(self._loaded.items()):
            if adapter.attached or self._users[handle] > 0:
                continue
            if handle in self._attached_now.handles:
                self.apply(NO_ADAPTERS)
            self._backend.free_adapter(adapter.lora)
            del self._loaded[handle]
            del self._users[handle]

    def _find(self, handle: str) -> _Adapter:
        adapter = self._loaded.get(handle)
        if adapter is None or not adapter.attached:
            raise AdapterNotFound(f"no adapter {handle!r} is attached to this model", handle=handle)
        return adapter

    def _info(self, handle: str) -> AdapterInfo:
        adapter = self._loaded[handle]
        return AdapterInfo(handle=handle, path=adapter.path, scale=adapter.scale, sha256=adapter.sha256.hex())
