"""Log lines: one JSON object each, levels, rate limit."""

import io
import json
import os

from erllama_host.observability import Log


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object() -> None:
    stream = io.StringIO()
    Log("controller", stream=stream).info("loaded", model="tiny", path="a\nb")
    (line,) = _lines(stream)
    assert (line["process"], line["level"], line["event"], line["model"]) == ("controller", "info", "loaded", "tiny")
    assert line["path"] == "a\nb"


def test_a_reader_that_has_been_killed_is_no_reason_to_end() -> None:
    """Workers and the cache daemon outlive a killed circusd for as long as they save, and say so on the way."""
    read_end, write_end = os.pipe()
    with open(write_end, "w", encoding="utf-8") as stream:
        os.close(read_end)
        log = Log("worker", stream=stream)
        log.info("terminate")
        log.info("saved")


def test_lower_levels_are_left_out() -> None:
    stream = io.StringIO()
    log = Log("x", level="warning", stream=stream)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line["event"] for line in _lines(stream)] == ["c", "d"]


def test_a_flood_becomes_one_line_and_a_count() -> None:
    stream = io.StringIO()
    log = Log("x", stream=stream)
    for _ in range(5):
        log.rate_limited("bad_message", interval_s=3600)
    log.rate_limited("bad_message", interval_s=0)
    lines = _lines(stream)
    assert len(lines) == 2
    assert lines[1]["suppressed"] == 4
