"""What computes: `base.py` is the seam, `stub/` and `llama/` stand behind it, `open.py` picks one."""
