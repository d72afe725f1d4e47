"""Benchmarks: ratios from one run, against an in-process loop always and llama-server where `LLAMA_SERVER_BIN` names one.

`python -m benchmarks` runs every part. A part is a module with `run(setting) -> list[Figure]`; what it needs (a private host, a
peer, the in-process loop) it starts and ends itself. Milliseconds of a shared machine mean little, ratios taken side by side
mean something: whatever is compared runs interleaved, with the same prompts, threads, KV types and flash attention.
"""
