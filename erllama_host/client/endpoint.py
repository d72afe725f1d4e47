"""From a client's arguments to what a connection is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from erllama_host.client.limits import Patience, StreamLimits
from erllama_host.config import find_paths
from erllama_host.errors import ConfigError

if TYPE_CHECKING:
    from erllama_host.client.connection import Connection
    from erllama_host.transport.client_link import CurveFiles


@dataclass(frozen=True)
class ClientOptions:
    """What a client was asked to be.

    Attributes:
        endpoint: where the host listens. timeout_s: bound of calls that have none of their own.
        key_file, server_key_file: for tcp. limits, patience: how long to wait for what.
    """

    endpoint: str
    timeout_s: float = 60.0
    key_file: Path | None = None
    server_key_file: Path | None = None
    limits: StreamLimits = field(default_factory=StreamLimits)
    patience: Patience = field(default_factory=Patience)

    @property
    def local(self) -> bool:
        """Whether the host sees the same files as the client."""
        return self.endpoint.startswith("ipc://")

    def stream_limits(self, max_resumes: int | None) -> StreamLimits:
        """Limits of one stream."""
        return self.limits if max_resumes is None else replace(self.limits, max_resumes=max_resumes)


def client_options(
    endpoint: str | None,
    timeout_s: float,
    key_file: str | Path | None,
    server_key_file: str | Path | None,
    max_resumes: int,
    patience: Patience | None,
    environ: Mapping[str, str] | None = None,
) -> ClientOptions:
    """Fill in what was not said from the environment.

    Raises:
        ConfigError: a value is impossible.
    """
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s must be greater than 0, got {timeout_s}", key="timeout_s")
    if max_resumes < 0:
        raise ConfigError(f"max_resumes must be 0 or greater, got {max_resumes}", key="max_resumes")
    return ClientOptions(
        endpoint=endpoint or find_paths(environ).endpoint,
        timeout_s=timeout_s,
        key_file=None if key_file is None else Path(key_file),
        server_key_file=None if server_key_file is None else Path(server_key_file),
        limits=StreamLimits(max_resumes=max_resumes),
        patience=patience or Patience(),
    )


def open_connection(options: ClientOptions) -> "Connection":
    """Start to connect, on the running loop.

    asyncio and zmq are imported here, when a client is first used, so that `import erllama_host.client` stays quick.
    """
    from erllama_host.client.connection import Connection, Settings
    from erllama_host.transport.client_link import ZmqLink

    link = ZmqLink(options.endpoint, _curve(options))
    settings = Settings(options.endpoint, options.timeout_s, options.patience, options.limits)
    return Connection(link, settings)


def _curve(options: ClientOptions) -> "CurveFiles | None":
    from erllama_host.transport.client_link import CurveFiles

    if options.key_file is None and options.server_key_file is None:
        return None
    if options.key_file is None or options.server_key_file is None:
        raise ConfigError("key_file and server_key_file are given together or not at all", key="key_file")
    return CurveFiles(options.key_file, options.server_key_file)
