"""From the command line's global options to a connected client. No state: `Settings` travels in the Typer context."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from erllama_host.client import Client
    from erllama_host.config import Config, Paths

_SOON_S = 3.0
_CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Settings:
    """Options before the command: `erllama --endpoint tcp://gpu-box:7700 --key me.key --server-key box.pub ps`."""

    endpoint: str | None = None
    key_file: Path | None = None
    server_key_file: Path | None = None
    debug: bool = False


def settings_of(ctx: typer.Context) -> Settings:
    """The settings of this command line."""
    found = ctx.find_root().obj
    return found if isinstance(found, Settings) else Settings()


def paths_of(ctx: typer.Context, config_file: Path | None = None) -> "Paths":
    """The directories of the host that this command line means."""
    from erllama_host.config import find_paths

    paths = find_paths()
    if config_file is not None:
        paths = replace(paths, config_file=config_file.absolute())
    endpoint = settings_of(ctx).endpoint
    return replace(paths, endpoint_override=endpoint) if endpoint else paths


def config_of(paths: "Paths") -> "Config":
    """The configuration those directories name.

    Raises:
        ConfigError: names the key.
    """
    from erllama_host.config import load_config

    return load_config(paths.config_file)


def open_client(ctx: typer.Context, impatient: bool = False) -> "Client":
    """A client of the host; a context manager. It connects when first used, and then may raise HostUnavailable.

    Args:
        impatient: say soon that a host has gone, instead of waiting for it to come back.
    """
    settings = settings_of(ctx)
    return connect(paths_of(ctx).endpoint, settings.key_file, settings.server_key_file, impatient)


def connect(
    endpoint: str, key_file: Path | None = None, server_key_file: Path | None = None, impatient: bool = False
) -> "Client":
    """A client for `endpoint`; tests put a fake here."""
    from erllama_host.client import Client, Patience

    patience = Patience(accept_s=_SOON_S, grace_s=_SOON_S) if impatient else Patience()
    timeout_s = _SOON_S if impatient else _CALL_TIMEOUT_S
    return Client(endpoint, key_file=key_file, server_key_file=server_key_file, timeout_s=timeout_s, patience=patience)
