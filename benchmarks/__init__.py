"""Benchmarks: ratios from one run, against an in-process loop always, and against llama-server and llama-cpp-python's own server
where they are there: `make bench-peers` installs both, `LLAMA_SERVER_BIN` names another llama-server.

`python -m benchmarks` runs every part. A part is a module with `run(setting) -> list[Figure]`; what it needs (a private host, a
peer, the in-process loop) it starts and ends itself, and what a killed run has left goes when the next one starts a host.
Milliseconds of a shared machine mean little, ratios taken side by side mean something: whatever is compared runs interleaved, with
the same prompts, threads, KV types and flash attention.
"""
