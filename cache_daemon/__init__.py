"""The shared cache daemon: index, budgets, leases and eviction of KV segments. `python -m cache_daemon` runs it."""
