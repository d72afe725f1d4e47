"""The command line. `main.py` lists the commands; every command is a few lines over the client library or the supervisor.

Nothing heavy is imported at module level here: `erllama --help` and completion must feel instant. Commands import the client,
rich and psutil when they run.
"""
