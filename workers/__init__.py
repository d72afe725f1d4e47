"""The worker: one process per model. `python -m workers MODEL_ID` runs one."""
