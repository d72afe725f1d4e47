"""Spec files of models, `$ERLLAMA_RUN/models/<id>.json`: the controller writes them, workers and whoever ends a host read them."""

import msgspec

from erllama_host.config.model import ModelSpec
from erllama_host.config.paths import Paths


def read_specs(paths: Paths) -> list[ModelSpec]:
    """The specs of all models that have, or are about to have, a worker; files that are not specs are passed over."""
    found = []
    for path in sorted((paths.run / "models").glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=ModelSpec))
        except (OSError, ValueError):
            continue
    return found


def longest_stop_s(paths: Paths) -> float:
    """How long the slowest of them may take to end: the cache daemon, who takes their last saves, has to outlast it."""
    return max((spec.config.stop_s for spec in read_specs(paths)), default=0.0)
