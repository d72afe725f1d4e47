"""`tokenize` and `embed`: look at what a model makes of a text."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from erllama_host.cli.connection import open_client
from erllama_host.cli.options import JsonFlag, ModelName, flag
from erllama_host.cli.output import Column, Table, print_json, print_table
from erllama_host.cli.words import plural
from erllama_host.errors import InvalidRequest

_SHOWN_DIMENSIONS = 6


def tokenize(
    ctx: typer.Context,
    model: ModelName,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Read from stdin when absent.", show_default=False)
    ] = None,
    add_special: Annotated[
        bool, typer.Option("--special/--no-special", help="Add the tokens that begin a prompt.")
    ] = True,
    parse_special: Annotated[bool, flag("--parse-special", help="Read <|...|> in the text as special tokens.")] = False,
    ids_only: Annotated[bool, flag("--ids", help="Only the ids, in one line.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a text as the model's tokens.

    Examples:
        $ erllama tokenize tiny "Hello, world"
        $ erllama tokenize tiny --ids < prompt.txt
    """
    source = sys.stdin.read() if text is None else text
    with open_client(ctx) as host:
        chosen = host.model(model)
        ids = chosen.tokenize(source, add_special=add_special, parse_special=parse_special)
        if ids_only:
            print(" ".join(str(token) for token in ids))
            return
        pieces = {token: chosen.detokenize([token], special=True) for token in sorted(set(ids))}
    if as_json:
        print_json({"tokens": ids, "pieces": [pieces[token] for token in ids]})
        return
    rows = [(str(index), str(token), repr(pieces[token])) for index, token in enumerate(ids)]
    print_table(Table((Column("INDEX", "right"), Column("TOKEN", "right"), Column("TEXT")), rows, empty="No tokens."))


def embed(
    ctx: typer.Context,
    model: ModelName,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="One line of stdin each when absent.", show_default=False),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Scale vectors to length 1.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Show the embedding vectors of texts, and how alike they are.

    Examples:
        $ erllama embed tiny "a cat" "a kitten" "a tax form"
        $ erllama embed tiny --json < lines.txt
    """
    from erllama_host.cli.progress import waiting

    inputs = texts or [line for line in sys.stdin.read().splitlines() if line]
    if not inputs:
        raise InvalidRequest("there is nothing to embed: give texts as arguments, or lines on stdin", field="texts")
    with open_client(ctx) as host, waiting(f"embedding {plural(len(inputs), 'text')}"):
        vectors = host.model(model).embed(inputs, normalize=normalize)
    if as_json:
        print_json({"n_embd": len(vectors[0]), "vectors": vectors})
    else:
        print_table(_vectors_table(inputs, vectors))


def _vectors_table(texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> Table:
    """The beginning of each vector, and its cosine with the first."""
    columns = (
        Column("TEXT", cut=True),
        Column("LIKE FIRST", "right"),
        Column("DIMENSIONS", "right"),
        Column("VECTOR", cut=True),
    )
    rows = []
    for text, vector in zip(texts, vectors, strict=True):
        beginning = " ".join(f"{value:+.4f}" for value in vector[:_SHOWN_DIMENSIONS])
        rows.append((text, f"{cosine(vectors[0], vector):.3f}", str(len(vector)), beginning + " ..."))
    return Table(columns, rows)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 when one of them has no length."""
    product = sum(a * b for a, b in zip(first, second, strict=True))
    norms = sum(a * a for a in first) * sum(b * b for b in second)
    return float(product / norms**0.5) if norms > 0 else 0.0
