"""`erllama keys new | list | remove`: who may connect from other machines, and as what."""

import typer

app = typer.Typer(name="keys", help="Keys of remote clients (CURVE).")
