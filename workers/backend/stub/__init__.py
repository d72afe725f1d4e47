"""A backend without llama.cpp: deterministic tokens, real KV bookkeeping, mishaps on request.

For tests of the host and of its users' programs; opened by `backend = "stub"` and never in place of llama.cpp.
"""
