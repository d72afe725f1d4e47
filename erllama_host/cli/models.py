"""`ps`, `load`, `unload`, `restart`, `models`, `counters`: which models run, and how they are."""

from pathlib import Path
from typing import Annotated

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.options import JsonFlag, LoadOptions, ModelName, flag
from erllama_host.cli.output import note, print_json, print_table
from erllama_host.errors import InvalidRequest


def ps(
    ctx: typer.Context,
    watch: Annotated[bool, flag("-w", "--watch", help="A live screen; Ctrl-C leaves it.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, help="Seconds between looks, with --watch.")
    ] = 1.0,
    as_json: JsonFlag = False,
) -> None:
    """Show the loaded models and what they do.

    Examples:
        $ erllama ps
        $ erllama ps --watch
        $ erllama ps --json | jq -r '.models[] | select(.status == "failed") | .model_id'
    """
    from erllama_host.cli.screens import models_table

    if watch:
        from erllama_host.cli.watch import watch_models

        watch_models(ctx, interval_s, as_json)
        return
    with open_client(ctx) as host:
        found = host.list_models()
    if as_json:
        print_json({"models": found})
    else:
        print_table(models_table(found))


def load(
    ctx: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="The GGUF file; none for `-o backend=stub`.", show_default=False),
    ] = None,
    model_id: Annotated[
        str | None, typer.Option("--id", help="Name of the model; made up when absent.", show_default=False)
    ] = None,
    options: LoadOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Load a model and wait until it is ready. Prints its id.

    Examples:
        $ erllama load SmolLM2.gguf --id tiny
        $ erllama load big.gguf --id big -o n_ctx=32768 -o type_k=q8_0 -o type_v=q8_0
        $ erllama load big.gguf --id big -o tier=disk -o keep_alive_s=600
    """
    from erllama_host.cli.load_options import parse_options
    from erllama_host.cli.progress import file_size, load_bar

    config = parse_options(options or [])
    if path is None and config.get("backend") != "stub":
        raise InvalidRequest("PATH is missing: name the GGUF file to load", field="path")
    with open_client(ctx) as host, load_bar(path.name if path else "stub", file_size(path)) as on_progress:
        model = host.load_model(path or "", model_id=model_id, on_progress=on_progress, **config)
        info = model.info()
    if as_json:
        print_json(info)
    else:
        print(info.model_id)


def unload(ctx: typer.Context, model: ModelName) -> None:
    """Save what the model holds, end its process, and free its id.

    Requests in flight end as cancelled. A model of erllama.toml comes back with the next `erllama up`.

    Examples:
        $ erllama unload tiny
    """
    from erllama_host.cli.progress import waiting

    with open_client(ctx) as host, waiting(f"unloading {model}"):
        host.unload(model)
    note(f"{model} is unloaded")


def restart(ctx: typer.Context, model: ModelName, as_json: JsonFlag = False) -> None:
    """Restart a model's process; clears `failed`.

    Waits until it is ready. Streams go on from where they are, warm from the cache.

    Examples:
        $ erllama restart tiny
    """
    from erllama_host.cli.progress import load_bar

    with open_client(ctx) as host, load_bar(model) as on_progress:
        info = host.restart(model, on_progress=on_progress)
    if as_json:
        print_json(info)
    else:
        note(f"{model} is {info.status}, pid {info.pid}")


def models(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Show every model's file, and its pids as the supervisor sees them.

    Examples:
        $ erllama models
    """
    from erllama_host.cli.screens import pids_table

    with open_client(ctx) as host:
        pids, known = host.models(), host.list_models()
    if as_json:
        print_json({"pids": pids})
    else:
        print_table(pids_table(pids, known))


def counters(
    ctx: typer.Context,
    contains: Annotated[
        str, typer.Argument(metavar="WORD", help="Only counters whose name contains it.", show_default=False)
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Show the counters of host and cache.

    Examples:
        $ erllama counters
        $ erllama counters hits
    """
    from erllama_host.cli.screens import counters_table

    with open_client(ctx) as host:
        found = {name: value for name, value in sorted(host.counters().items()) if contains in name}
    if as_json:
        print_json({"counters": found})
    else:
        print_table(counters_table(found))
