"""One model, many customers: each request names the LoRA adapters it is answered with.

    python -m examples.lora_per_customer tiny customer-a.gguf customer-b.gguf

The base weights are in memory once. What is cached under one set of adapters is never read under another.
"""

import sys
from pathlib import Path

from erllama_host import Client

LETTER = "Dear customer, thank you for your letter. "


def main(model_id: str, *paths: str) -> None:
    """Load an adapter per customer, answer each with their own, and nobody with somebody else's."""
    with Client() as host:
        model = host.model(model_id)
        customers = {Path(path).stem: [model.load_adapter(path)] for path in paths}
        try:
            for name, adapters in {"nobody in particular": [], **customers}.items():
                model.prefill_only(LETTER, adapters=adapters)
                done = model.complete(LETTER, max_tokens=16, adapters=adapters)
                print(f"{name}: {done.cache.read_tokens} tokens of their own cache,{done.text!r}")
        finally:
            for adapters in customers.values():
                model.unload_adapter(adapters[0])


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:])
