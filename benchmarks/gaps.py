"""The longest pause of two running streams while a 6 000-token prompt is computed next to them, and what that costs the prompt."""

from benchmarks.arithmetic import median
from benchmarks.figures import Figure
from benchmarks.host import benchmark_host
from benchmarks.llama_server import LlamaServer, llama_server
from benchmarks.setting import Setting
from benchmarks.systems import System, gaps_within, streaming

PART = "gaps"
LONG_PROMPT_TOKENS = 6000
PROMPT_TOKENS = 32
NUM_STREAMS = 2
MAX_TOKENS = 4096  # the streams are cut off when the long prompt is through
N_CTX = 8192
N_SEQ_MAX = 4


def run(setting: Setting) -> list[Figure]:
    """Both streams run when the long prompt comes. One round of each system: the prefill alone takes half a minute."""
    length = setting.repeats(LONG_PROMPT_TOKENS, 1500)
    with benchmark_host() as host:
        model = host.load(setting.model, "tiny", n_ctx=N_CTX, n_cells=2 * N_CTX, n_seq_max=N_SEQ_MAX)
        gap_ms, usual_ms, ttft_ms = _measure(setting, model, length)
    theirs: tuple[float, ...] = ()
    if setting.llama_server is not None:
        with llama_server(setting.llama_server, setting.model, 2 * N_CTX, N_SEQ_MAX) as server:
            theirs = _measure(setting, server, length)
    peer = dict(zip(("gap", "usual", "ttft"), theirs, strict=False))
    what = f"2 streams during a {length}-token prefill"
    return [
        Figure(PART, f"worst gap of {what}", gap_ms, "ms", LlamaServer.name, peer.get("gap")),
        Figure(PART, f"median gap of {what}", usual_ms, "ms", LlamaServer.name, peer.get("usual")),
        Figure(PART, f"first token of the {length}-token prompt", ttft_ms, "ms", LlamaServer.name, peer.get("ttft")),
    ]


def _measure(setting: Setting, system: System, length: int) -> tuple[float, float, float]:
    """Worst and median gap within the prefill, and its time to first token; ms."""
    prompts = [setting.corpus.prompt(700 + index, PROMPT_TOKENS) for index in range(NUM_STREAMS)]
    with streaming(system, prompts, MAX_TOKENS) as streams:
        prefill = system.stream(setting.corpus.prompt(710, length), 1)
    start, end = prefill.called_at_s, prefill.moments_s()[0]
    gaps = [gap for stream in streams for gap in gaps_within(stream, start, end)]
    return max(gaps), median(gaps), prefill.ttft_ms
