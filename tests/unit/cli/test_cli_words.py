"""Numbers as people read them."""

import pytest

from erllama_host.cli.words import bytes_text, count_text, duration_text, plural, rate_text, share_text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "-"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (147 * 1024**2, "147 MiB"), (1.5 * 1024**3, "1.5 GiB")],
)
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (9999, "9999"), (10_000, "10.0k"), (134_515_008, "134.5M"), (7e9, "7.0G")]
)
def test_counts(count, text):
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (60, "1m 00s"), (3723, "1h 02m"), (90_000, "1d 01h")]
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_what_is_not_there_is_a_dash():
    assert rate_text(0) == share_text(1, 0) == "-"
    assert rate_text(12.34) == "12.3"
    assert share_text(1, 3) == "33%"


def test_plural():
    assert (plural(1, "model"), plural(2, "model")) == ("1 model", "2 models")
