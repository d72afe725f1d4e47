"""A process that reserves the first block of a synthetic row and holds it until it is killed: `… ENDPOINT NUMBER`."""

import os
import signal
import sys
import time

from benchmarks.cache_rows import BLOCK_TOKENS, SPACE, SyntheticRow
from erllama_host.process import die_with_parent
from workers.kv_store import KvStore
from workers.kv_types import SegmentSpec


def main() -> None:
    """Say `held` when the reservation is there."""
    die_with_parent()
    endpoint, number = sys.argv[1], int(sys.argv[2])
    store = KvStore(
        endpoint=endpoint,
        model_id="writer",
        incarnation=os.urandom(4).hex(),
        namespace=SPACE.root,
        tier="ram",
        block_tokens=BLOCK_TOKENS,
        on_wake=lambda: None,
        timeout_s=10.0,
    )
    while not store.connected:
        time.sleep(0.005)
    store.reserve([SegmentSpec(next(SyntheticRow(number).blocks()), 1 << 16)]).wait()
    print("held", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
