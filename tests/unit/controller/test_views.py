"""What is shown of a model whose worker has ended: what was learnt of the model stays, the figures of the process go."""

import pytest

from erllama_host.config import ModelConfig
from erllama_host.controller.lifecycle import Model, State
from erllama_host.controller.views import model_info
from erllama_host.protocol.calls import ModelInfo

KNOWN = ModelInfo(
    model_id="tiny",
    n_ctx=512,
    quantisation="Q4_1",
    resident_bytes=1 << 30,
    device_bytes=1 << 30,
    pending=3,
    queue_depth=2,
    used_cells=9,
    live_cells=9,
    tokens_per_s=5.0,
    prefill_tokens_per_s=5.0,
    uptime_s=60.0,
    cache_hits=4,
)
OF_THE_PROCESS = (
    "resident_bytes", "device_bytes", "pending", "queue_depth", "used_cells", "live_cells", "tokens_per_s",
    "prefill_tokens_per_s", "uptime_s",
)  # fmt: skip


@pytest.mark.parametrize("state", list(State))
def test_a_model_without_a_worker_has_no_figures_of_one(state):
    model = Model("tiny", ModelConfig(backend="stub"), "load", state=state, pid=7, info=KNOWN)
    shown = model_info(model, 1.0)
    alive = state in (State.READY, State.STOPPING)
    assert [bool(getattr(shown, name)) for name in OF_THE_PROCESS] == [alive] * len(OF_THE_PROCESS)
    assert (shown.n_ctx, shown.quantisation, shown.cache_hits) == (512, "Q4_1", 4)
