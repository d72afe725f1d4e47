"""The first session in the documentation is a real one: typed again, it says the same."""

import pytest

from docs import transcript

BLOCKS = [(page, block) for page in transcript.PAGES for block in transcript.blocks(page)]


@pytest.mark.process
@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page.name for page, _ in BLOCKS])
def test_a_session_is_still_as_written(page, block):
    assert transcript.words(transcript.record(block)) == transcript.words(block), "run: python -m docs.transcript"


def test_there_is_one():
    assert BLOCKS
    assert "erllama up -d" in transcript.commands(BLOCKS[0][1])


def test_numbers_may_differ_and_words_may_not():
    one = "$ erllama ps\ntiny  idle  -  9 KiB  5s\npid 18 at ipc:///tmp/et-x/run/clients.sock · 55.9 tok/s"
    two = "$ erllama ps\ntiny  generating  31.5  10.2 MiB  1m 02s\npid 7 at ipc:///tmp/et-y/run/clients.sock · 1 tok/s"
    assert transcript.words(one) == transcript.words(two)
    assert transcript.words("the host is up, pid 1") == transcript.words("the host is up, pid 22")
    assert transcript.words("cache cold") != transcript.words("cache live")
