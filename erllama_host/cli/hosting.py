"""`up`, `down`, `status`: the host as a whole."""

import signal
import time
from typing import TYPE_CHECKING, Annotated

import typer

from erllama_host.cli.connection import config_of, open_client, paths_of
from erllama_host.cli.exits import Exit
from erllama_host.cli.options import ConfigFile, JsonFlag, flag
from erllama_host.cli.output import note, print_json, print_tables
from erllama_host.cli.versions import require_host
from erllama_host.cli.words import bytes_text, duration_text, plural

if TYPE_CHECKING:
    from erllama_host.config import Paths
    from erllama_host.protocol.calls import HostStatus
    from erllama_host.supervisor import RunningHost

_LOADS_BEGIN_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.2


def up(
    ctx: typer.Context,
    detach: Annotated[
        bool, flag("-d", "--detach", help="Run in the background; return when the host answers.")
    ] = False,
    wait: Annotated[bool, flag("--wait", help="With -d: return when the models of erllama.toml are loaded.")] = False,
    config: ConfigFile = None,
) -> int:
    """Start the host, and the models of erllama.toml.

    In the foreground it shows what happens until Ctrl-C, which lets requests finish, saves, and stops; a second Ctrl-C stops at
    once.

    Examples:
        $ erllama up -d
        $ erllama up --config deploy/erllama.example.toml
    """
    from erllama_host.cli.progress import waiting
    from erllama_host.supervisor import host_state, start_host

    require_host()
    paths = paths_of(ctx, config)
    parsed = config_of(paths)
    started_at = time.time()
    with waiting("starting the host") as on_progress:
        running = start_host(paths, parsed, detach=detach, on_progress=on_progress)
    note(f"the host is up, pid {host_state(paths).pid}; clients connect to {paths.endpoint}")
    if not detach:
        return _attend(ctx, running, started_at)
    eager = {model_id for model_id, model in parsed.models.items() if not model.lazy}
    return _wait_for_models(ctx, eager) if wait and eager else Exit.OK


def _attend(ctx: typer.Context, running: "RunningHost", started_at: float) -> int:
    """Show the events of a host in the foreground until it ends, or until we are told to end it."""
    from erllama_host.cli.events import follow_events

    note("Ctrl-C stops it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_client(ctx) as host:
            follow_events(host, started_at, is_over=lambda: running.wait(0) is not None)
        return Exit.OK if running.wait() == 0 else Exit.FAILED
    except KeyboardInterrupt:
        _stop(running.paths)
        running.wait(5.0)
        return Exit.OK


def _wait_for_models(ctx: typer.Context, wanted: set[str]) -> int:
    """Wait until none of `wanted` is loading; says which of them failed."""
    from erllama_host.cli.progress import waiting

    begin_by = time.monotonic() + _LOADS_BEGIN_WITHIN_S
    with open_client(ctx) as host, waiting(f"loading {plural(len(wanted), 'model')}"):
        while True:
            models = {model.model_id: model for model in host.list_models() if model.model_id in wanted}
            missing = sorted(wanted - models.keys())
            loading = [model for model in models.values() if model.status in ("loading", "restarting")]
            if not loading and (not missing or time.monotonic() > begin_by):
                break
            time.sleep(_LOOK_EVERY_S)
    failed = [(model.model_id, model.last_failure) for model in models.values() if model.status == "failed"]
    failed += [(model_id, "it is not on the host's list") for model_id in missing]
    for model_id, why in failed:
        note(f"{model_id} has failed: {why or 'see its log'}")
    return Exit.MODEL_FAILED if failed else Exit.OK


def down(
    ctx: typer.Context,
    now: Annotated[bool, flag("--now", help="Do not wait for requests, do not save.")] = False,
) -> int:
    """Stop the host: let requests finish, save, end every process.

    Ctrl-C while it waits stops the host at once.

    Examples:
        $ erllama down
        $ erllama down --now
    """
    from erllama_host.supervisor import host_state

    paths = paths_of(ctx)
    if not host_state(paths).running:
        note(f"no host runs in {paths.run}")
        return Exit.NO_HOST
    _stop(paths, now)
    return Exit.OK


def _stop(paths: "Paths", now: bool = False) -> None:
    """Stop in order; a Ctrl-C meanwhile ends the patience."""
    from erllama_host.cli.progress import waiting
    from erllama_host.supervisor import stop_host

    try:
        with waiting("stopping the host") as on_progress:
            drain_s = config_of(paths).host.drain_s
            stop_host(paths, now=now, drain_s=drain_s, on_progress=on_progress)
    except KeyboardInterrupt:
        note("stopping at once")
        stop_host(paths, now=True)
    note("the host is down")


def status(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show the host: its processes, restarts and last failures.

    Examples:
        $ erllama status
        $ erllama status --json | jq .hello.components
    """
    from erllama_host.cli.screens import models_table, processes_table

    with open_client(ctx) as host:
        found = host.host_status()
    if as_json:
        print_json(found)
        return
    for line in _headlines(found):
        print(line)
    print_tables(processes_table(found.processes), models_table(found.models))


def _headlines(status: "HostStatus") -> list[str]:
    """Who answers, since when, built on what, with how much memory."""
    hello = status.hello
    lines = [
        f"erllama {hello.version}, protocol {hello.protocol}, up {duration_text(max(0.0, time.time() - hello.started_at))}"
        + (", draining" if hello.draining else "")
        + ("" if hello.cache_available else ", cache away"),
        f"run {hello.run_dir}  home {hello.home}",
    ]
    if hello.components:
        lines.append("  ".join(f"{name} {version}" for name, version in sorted(hello.components.items())))
    if status.memory:
        lines.append("memory: " + ", ".join(_memory_text(name, value) for name, value in status.memory.items()))
    return lines


def _memory_text(name: str, value: float) -> str:
    """`ram_used_bytes` 1e9 → `ram used 954 MiB`."""
    label = name.removesuffix("_bytes").replace("_", " ")
    return f"{label} {bytes_text(value) if name.endswith('_bytes') else f'{value:g}'}"
