"""`erllama run`: one answer. With a GGUF file and no host running, a private host lives just as long as the answer takes."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erllama_host.cli import answering
from erllama_host.cli.connection import open_client, paths_of
from erllama_host.cli.exits import Exit
from erllama_host.cli.options import JsonFlag, LoadOptions, MaxTokens, ModelOrFile, Seed, Temperature, flag
from erllama_host.cli.output import note, print_json
from erllama_host.cli.versions import require_host
from erllama_host.errors import InvalidRequest, ModelLoadFailed, ModelNotLoaded

if TYPE_CHECKING:
    from erllama_host.client import Client, Model, Stream
    from erllama_host.protocol.calls import LoadProgress


def run(
    ctx: typer.Context,
    model: ModelOrFile,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What to answer; read from stdin when absent or '-'.", show_default=False
        ),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Keep tokens up to this probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", min=0.0, max=1.0, help="Drop tokens below this share of the best.")
    ] = 0.0,
    seed: Seed = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End before this text; repeatable.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="Instructions before the prompt.", show_default=False)
    ] = None,
    raw: Annotated[bool, flag("--raw", help="Continue the text as it is, without the chat template.")] = False,
    stats: Annotated[bool, flag("--stats", help="A line of figures on stderr.")] = False,
    options: LoadOptions = None,
    as_json: JsonFlag = False,
) -> int:
    """Answer one prompt.

    MODEL_OR_FILE is the id of a loaded model, or a GGUF file: then the running host loads it for this answer, and with no host
    running a private one is started and stopped again. Ctrl-C stops the answer.

    Examples:
        $ erllama run tiny "Why is the sky blue?"
        $ erllama run SmolLM2.gguf "Write a haiku about caches." -t 0.8 --seed 7
        $ erllama run tiny --raw "Once upon a time" -n 50 --stats
        $ git diff | erllama run big --system "Write a commit message." -
    """
    from erllama_host.cli.load_options import parse_options

    text = _prompt_text(prompt)
    params: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or [],
    }
    if max_tokens is not None:
        params["max_tokens"] = max_tokens
    with (
        _model_for(ctx, model, parse_options(options or [])) as chosen,
        _start(chosen, text, system, raw, params) as stream,
    ):
        answer = answering.show(stream, answering.to_stdout(as_json))
        figures = stream.stats
        assert figures is not None  # the stream has been read to its end
    if as_json:
        print_json(
            {
                "text": answer.text,
                "thinking": answer.channel("thinking"),
                "tool_calls": answer.channel("tool_call"),
                "finish_reason": figures.finish_reason,
                "stats": figures,
            }
        )
    if stats:
        note(answering.stats_line(figures))
    return Exit.INTERRUPTED if answer.interrupted else Exit.OK


def _prompt_text(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise InvalidRequest("a prompt is missing: give it as the second argument, or pipe it in", field="prompt")
    return sys.stdin.read()


def _start(model: "Model", text: str, system: str | None, raw: bool, params: dict[str, Any]) -> "Stream":
    """A model with a chat template is talked to, another one continues the text."""
    if raw or not model.info().has_chat_template:
        return model.infer(text if system is None else f"{system}\n\n{text}", **params)
    return model.chat_stream([{"role": "user", "content": text}], system, **params)


@contextmanager
def _model_for(ctx: typer.Context, name: str, config: dict[str, Any]) -> Iterator["Model"]:
    """The loaded model of that id, or the file loaded for the time being."""
    if not _is_file(name):
        with open_client(ctx) as host:
            yield host.model(name)
        return
    path = Path(name).absolute()
    if paths_of(ctx).endpoint_override is None and not _is_running(ctx):
        with _private_host(path) as host, _loaded(host, path, config) as model:
            yield model
        return
    with open_client(ctx) as host, _found_or_loaded(host, path, config) as model:
        yield model


def _is_file(name: str) -> bool:
    return name.endswith(".gguf") or "/" in name or Path(name).is_file()


def _is_running(ctx: typer.Context) -> bool:
    from erllama_host.supervisor import host_state

    return host_state(paths_of(ctx)).running


@contextmanager
def _private_host(path: Path) -> Iterator["Client"]:
    """A host of our own, gone without a trace afterwards."""
    from erllama_host.cli.connection import connect
    from erllama_host.cli.progress import waiting
    from erllama_host.supervisor import private_host

    if not path.exists():
        raise ModelLoadFailed(f"there is no file {path}")
    require_host()
    with ExitStack() as stack:
        with waiting("starting a private host") as on_progress:
            running = stack.enter_context(private_host(on_progress=on_progress))
        yield stack.enter_context(connect(running.paths.endpoint))


@contextmanager
def _found_or_loaded(host: "Client", path: Path, config: dict[str, Any]) -> Iterator["Model"]:
    """A model that runs from that very file already is used as it is; options ask for one of our own."""
    same = [
        model
        for model in host.list_models()
        if Path(model.path).resolve() == path.resolve() and model.status != "failed"
    ]
    if same and not config:
        yield host.model(same[0].model_id)
        return
    with _loaded(host, path, config) as model:
        yield model


@contextmanager
def _loaded(host: "Client", path: Path, config: dict[str, Any]) -> Iterator["Model"]:
    """The file loaded for the length of the block. An interrupted load is undone as well: it would come back at every `up`."""
    from erllama_host.cli.progress import file_size, load_bar

    begun: set[str] = set()

    def on_progress(progress: "LoadProgress") -> None:
        begun.add(progress.model_id)
        show(progress)

    try:
        with load_bar(path.name, file_size(path)) as show:
            model = host.load_model(str(path), on_progress=on_progress, **config)
        begun.add(model.model_id)
        yield model
    finally:
        for model_id in begun:
            with suppress(ModelNotLoaded):  # the load has failed
                host.unload(model_id)
