"""What bounds figures that may miss their target, found by profiling. Shown with a figure only when it misses.

Keys are beginnings of figure names.
"""

BOUNDS: dict[str, str] = {}
