"""`erllama keys new | list | remove`: who may connect from other machines, and as what. Files only: no host needs to run."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from erllama_host.cli.connection import config_of, paths_of
from erllama_host.cli.options import JsonFlag
from erllama_host.cli.output import Column, Table, note, print_json, print_table
from erllama_host.errors import InvalidRequest

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the client.", show_default=False)]


def new(
    ctx: typer.Context,
    name: KeyName,
    role: Annotated[
        Literal["user", "admin"],
        typer.Option("--role", help="user: infer and look. admin: load, unload and so on, too."),
    ] = "user",
    as_json: JsonFlag = False,
) -> None:
    """Make the key of a client on another machine.

    Prints the two files that the client needs: its secret key, and the host's public one. The host accepts the key at once.

    Examples:
        $ erllama keys new alice --role user
        $ erllama keys new carol --role admin --json
    """
    from erllama_host.transport.curve import new_key

    made = new_key(_directory(ctx), name, role)
    if as_json:
        files = {"secret_key_file": made.secret_file, "server_key_file": made.server_file}
        print_json({"name": name, "role": role, "public_key": made.key.public, **files})
        return
    print(made.secret_file)
    print(made.server_file)
    note(f"{name} may connect as {role}: move the first file to the client and copy the second, over a safe way")


def list_keys(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """List the keys that may connect.

    Examples:
        $ erllama keys list
    """
    from erllama_host.transport import curve

    found = curve.list_keys(_directory(ctx))
    if as_json:
        print_json({"keys": [{"name": key.name, "role": key.role, "public_key": key.public} for key in found]})
        return
    columns = (Column("NAME", cut=True), Column("ROLE"), Column("PUBLIC KEY", fold=True))
    rows = [(key.name, key.role, key.public) for key in found]
    print_table(Table(columns, rows, empty="No keys. Make one with: erllama keys new NAME"))


def remove(ctx: typer.Context, name: KeyName) -> None:
    """Take a key back: it is refused at its next connection.

    Examples:
        $ erllama keys remove alice
    """
    from erllama_host.transport.curve import remove_key

    directory = _directory(ctx)
    if not remove_key(directory, name):
        raise InvalidRequest(
            f"there is no key {name!r} in {directory}; `erllama keys list` shows those there are", field="name"
        )
    note(f"{name} may not connect any more")


def _directory(ctx: typer.Context) -> Path:
    """Where the keys are; made, and private, when there are none yet."""
    from erllama_host.config import private_directory
    from erllama_host.transport.curve import keys_directory

    paths = paths_of(ctx)
    private_directory(paths.home, "ERLLAMA_HOME")
    return private_directory(keys_directory(paths, config_of(paths)), "remote.keys_dir")


COMMANDS: tuple[tuple[str, Callable[..., Any]], ...] = (("new", new), ("list", list_keys), ("remove", remove))
