"""What the operating system says this process holds."""

import psutil


def resident_bytes() -> int:
    """Resident set size of this process."""
    return int(psutil.Process().memory_info().rss)
