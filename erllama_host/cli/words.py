"""Numbers as people read them. Pure."""

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """`1536` → `1.5 KiB`; zero is `-`, since a zero in a table means "not known" or "none"."""
    if count <= 0:
        return "-"
    value = float(count)
    for unit in _BYTE_UNITS:
        if value < 1024 or unit == _BYTE_UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """`134515008` → `134.5M`; whole numbers below ten thousand stay whole."""
    if count < 10_000:
        return f"{count:.0f}"
    value = float(count)
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000 or unit == "T":
            return f"{value:.1f}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def duration_text(seconds: float) -> str:
    """`3723` → `1h 02m`; the two largest units that matter."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def rate_text(per_second: float) -> str:
    """Tokens per second; `-` while nothing runs."""
    return "-" if per_second <= 0 else f"{per_second:.1f}"


def share_text(part: float, whole: float) -> str:
    """`part` of `whole` in percent; `-` when there is no whole."""
    return "-" if whole <= 0 else f"{100 * part / whole:.0f}%"


def plural(count: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
