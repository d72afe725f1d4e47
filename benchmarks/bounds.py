"""What bounds figures that may miss their target, found by profiling. Shown with a figure only when it misses.

Keys are beginnings of figure names.
"""

_SHARED_CORES = (
    "llama.cpp's threads, the client, the controller and the worker's service thread share the machine's cores, and a thread of "
    "llama.cpp that is interrupted holds up the others at the next barrier. The loop has the cores to itself. What the host needs "
    "of them per token is the figure with a stub; where llama.cpp leaves a core to the others most of the difference goes: the "
    "figure with one thread of llama.cpp. And the worker's threads sleep at a barrier after a short spin, where the loop's spin "
    "on: 2 to 5 % on a quiet machine, for which two busy models on two cores give tens of tokens a second and not one."
)

_OWN_TOKENS = (
    "the prefill of the agents' own tokens. At depth 1 024 one llama_decode takes 280 ms for 64 of them, 480 ms for 120, 970 for "
    "240, and 1 400 ms for 240 beside four copies of the prefix, which is what llama-server has (one process, threads bound to "
    "cores). So one by one or two at a time the mean of four is 680 to 710 ms and the last one's 1 030 to 1 130 ms, "
    "whatever surrounds them."
)

BOUNDS: dict[str, str] = {
    "single-stream decode": _SHARED_CORES,
    "4 streams": _SHARED_CORES,
    "8 streams": _SHARED_CORES,
    "16 streams": _SHARED_CORES,
    "first burst": _OWN_TOKENS,
    "restore of": (
        "llama.cpp copies a segment of 256 tokens tensor by tensor, 60 pieces of 98 KB to 60 places, and glibc copies those at "
        "0.75 to 0.8 of the rate of one piece of 6 MB, whoever asks: the line below compares with it. Finding cells and moving the "
        "segment from its scratch sequence takes 5 % of a restore, checking its structure as much. No copy of ours lies between."
    ),
    "later bursts": _OWN_TOKENS,
}
