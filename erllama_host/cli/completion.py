"""What the shell offers after Tab. Reads directories only: a completion must not wait for a host that hangs."""

from pathlib import Path


def complete_loaded_models(incomplete: str) -> list[str]:
    """Ids that begin with `incomplete`, from the spec files that the controller keeps for its workers."""
    from erllama_host.config import find_paths

    names = sorted(path.stem for path in (find_paths().run / "models").glob("*.json"))
    return [name for name in names if name.startswith(incomplete)]


def complete_processes(incomplete: str) -> list[str]:
    """Names of logs that begin with `incomplete`."""
    fixed = [name for name in ("controller", "cache", "circusd") if name.startswith(incomplete)]
    return fixed + complete_loaded_models(incomplete)


def complete_model_files(incomplete: str) -> list[str]:
    """Ids of loaded models, GGUF files, and directories to look into."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    beginning = "" if incomplete.endswith("/") else typed.name
    found = complete_loaded_models(incomplete)
    if not folder.is_dir():
        return found
    for entry in sorted(folder.iterdir()):
        if not entry.name.startswith(beginning) or entry.name.startswith("."):
            continue
        shown = incomplete[: len(incomplete) - len(beginning)] + entry.name
        if entry.is_dir():
            found.append(shown + "/")
        elif entry.suffix == ".gguf":
            found.append(shown)
    return found
