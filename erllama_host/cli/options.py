"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

from erllama_host.cli.completion import complete_loaded_models, complete_model_files


def flag(*names: str, help: str) -> Any:
    """A switch: no value, no default to show."""
    return typer.Option(*names, help=help, metavar="", show_default=False)


JsonFlag = Annotated[bool, flag("--json", help="Print JSON (schema: docs/guides/operating.md).")]
FollowFlag = Annotated[bool, flag("-f", "--follow", help="Go on until Ctrl-C.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Id of a loaded model.", autocompletion=complete_loaded_models, show_default=False
    ),
]
OptionalModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL", help="Id of a loaded model.", autocompletion=complete_loaded_models, show_default=False
    ),
]
ModelOrFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_FILE",
        help="Id of a loaded model, or path of a GGUF file.",
        autocompletion=complete_model_files,
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Use this erllama.toml.", show_default=False, dir_okay=False, exists=True
    ),
]
LoadOptions = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="Option of the load, as in a \\[models.<id>] table of erllama.toml; repeatable.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option("-n", "--max-tokens", min=0, help="Tokens of the answer at most.", show_default=False)
]
Temperature = Annotated[float, typer.Option("-t", "--temperature", min=0.0, help="0 always takes the likeliest token.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Repeat a sampled answer.", show_default=False)]
