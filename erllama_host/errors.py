"""Every error a caller can meet. Each has a stable `code` that is the class name, and says whether trying again helps. What goes
wrong with the cache is none: it is a cold prefill and a counter.

    ErllamaError
    ├── ConfigError             a key of erllama.toml or an option is wrong; names the key
    ├── RequestError            the caller must change the request
    │   ├── InvalidRequest      a field is missing, unknown or out of range; names the field
    │   ├── ContextOverflow     the prompt does not fit into the model's n_ctx
    │   ├── ModelNotLoaded      no model of that id
    │   ├── AlreadyLoaded       the id is taken
    │   ├── NotSupported        this model or backend cannot do that
    │   ├── AdapterNotFound     no adapter of that handle
    │   └── Forbidden           the caller's role or the path is not allowed
    ├── CapacityError           the same request may work later
    │   ├── QueueFull           the model's queue is at its bound; `retry_after_s`
    │   ├── ModelLoading        the model is loading or restarting; `retry_after_s`
    │   ├── SessionBusy         another request of that session is running
    │   └── NoMemory            the load does not fit into free memory
    ├── PeerError               a process or the way to it failed
    │   ├── WorkerDied          the model's process ended under the request
    │   ├── ModelFailed         the model was given up after repeated failures; `restart` clears it
    │   ├── Timeout             no answer before the deadline
    │   ├── ProtocolMismatch    the peer speaks another protocol version
    │   └── HostUnavailable     no host answers at the endpoint
    ├── ModelLoadFailed         the file cannot be loaded; carries llama.cpp's own reason
    └── InternalError           a bug of ours

Pure: this module imports nothing of the product.
"""

from typing import Any


class ErllamaError(Exception):
    """Base of all errors of the product.

    Attributes:
        message: one sentence for a person: the cause and the way out.
        details: machine-readable extras (`field`, `retry_after_s`, `last_log_lines`, ...).
        retryable: whether trying again helps. One kind says so for all its errors, except that a request which keeps killing its
            model (`details["poison"]`) should not be sent again.
    """

    retryable: bool = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details
        self._settle()

    def _settle(self) -> None:
        if self.details.get("poison"):
            self.retryable = False

    @property
    def code(self) -> str:
        """The stable name of the error on the wire and in `--json`."""
        return type(self).__name__

    @property
    def retry_after_s(self) -> float | None:
        """When trying again is worth while, in seconds; None where the host gave no estimate."""
        value = self.details.get("retry_after_s")
        return float(value) if value is not None else None


class ConfigError(ErllamaError):
    """A configuration key is unknown, has the wrong type or an impossible value; `details["key"]` names it."""


class RequestError(ErllamaError):
    """The request cannot be served as it is."""


class InvalidRequest(RequestError):
    """A field is missing, unknown or out of range; `details["field"]` names it."""


class ContextOverflow(RequestError):
    """The prompt (plus one token) does not fit into the model's n_ctx."""


class ModelNotLoaded(RequestError):
    """No model with that id exists on the host."""


class AlreadyLoaded(RequestError):
    """A model with that id exists already."""


class NotSupported(RequestError):
    """The model, its file or its backend cannot do what was asked."""


class AdapterNotFound(RequestError):
    """No adapter with that handle is loaded in the model."""


class Forbidden(RequestError):
    """The caller's role, or the place of a path, does not allow it."""


class CapacityError(ErllamaError):
    """Too much is going on; the same request may work later."""

    retryable = True


class QueueFull(CapacityError):
    """The model's bounded queue is full; `retry_after_s` estimates when a place is free."""


class ModelLoading(CapacityError):
    """The model is loading or restarting; `retry_after_s` estimates for how long."""


class SessionBusy(CapacityError):
    """Another request of the same session is in flight."""


class NoMemory(CapacityError):
    """The model does not fit into the memory that is free, even after idle things were let go."""

    retryable = False


class PeerError(ErllamaError):
    """A process, or the connection to it, failed."""

    retryable = True


class WorkerDied(PeerError):
    """The model's process ended while it had the request."""


class ModelFailed(PeerError):
    """The model was given up after repeated failures; `restart` clears that. Carries the reason and last log lines."""

    retryable = False


class Timeout(PeerError):
    """No answer came before the deadline."""


class ProtocolMismatch(PeerError):
    """The peer speaks another version of the protocol."""

    retryable = False


class HostUnavailable(PeerError):
    """No host answers at the endpoint; the message says how to start one."""


class ModelLoadFailed(ErllamaError):
    """The model file cannot be loaded; the message carries llama.cpp's own reason."""


class InternalError(ErllamaError):
    """A bug of ours; the log has the details under the request's ref."""


def _leaves(cls: type[ErllamaError]) -> list[type[ErllamaError]]:
    found = []
    for sub in cls.__subclasses__():
        found += [sub, *_leaves(sub)]
    return found


BY_CODE: dict[str, type[ErllamaError]] = {cls.__name__: cls for cls in _leaves(ErllamaError)}
"""Every error class by its wire code."""


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> ErllamaError:
    """The error a peer reported. A code of a newer version becomes InternalError, with the code kept in details."""
    cls = BY_CODE.get(code)
    error = cls(message) if cls is not None else InternalError(message, unknown_code=code)
    error.details.update(details or {})  # not as keywords: a peer may have a detail of any name, "message" too
    error._settle()
    return error
