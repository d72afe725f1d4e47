"""The journal of events: bounded, numbered for ever, waited for."""

import asyncio
import errno
import io
import json

import pytest

from erllama_host.controller import journal as module
from erllama_host.controller.journal import Journal
from erllama_host.observability import Log


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


def opened(path, limit, log=None):
    return Journal(path, limit, log or Log("test"))


def names(journal):
    return [event.name for event in journal.since(0, 100).events]


async def test_numbers_grow_over_restarts_and_the_file_is_bounded(path):
    journal = opened(path, limit=10)
    for number in range(35):
        journal.add("happened", "tiny", number=number)
    journal.close()
    assert len(path.read_text().splitlines()) <= 20
    again = opened(path, limit=10)
    assert [event.fields["number"] for event in again.since(0, 100).events] == list(range(25, 35))
    assert again.add("more").seq == 36
    again.close()


async def test_since_gives_pages(path):
    journal = opened(path, limit=100)
    for _ in range(7):
        journal.add("x")
    first = journal.since(0, 3)
    assert [event.seq for event in first.events] == [1, 2, 3] and first.next == 3
    second = journal.since(first.next, 100)
    assert [event.seq for event in second.events] == [4, 5, 6, 7]
    assert journal.since(second.next, 100).events == []
    assert journal.since(9999, 5).next == 7, "a journal that was begun anew is read from its start"
    journal.close()


async def test_waiting_ends_with_the_event_or_in_time(path):
    journal = opened(path, limit=100)
    waiting = asyncio.ensure_future(journal.wait_since(0, 10, 20_000))
    await asyncio.sleep(0)
    journal.add("came", model="tiny")
    assert [event.name for event in (await waiting).events] == ["came"]
    assert (await journal.wait_since(1, 10, 10)).events == []
    journal.close()


@pytest.mark.parametrize("damage", [b'{"seq": 2, "at"', b'{"seq":2,"at":1.0,"name":"\xff"}\n', b"\x00" * 300])
async def test_damaged_lines_are_passed_over_and_do_not_hurt_the_next(path, damage):
    journal = opened(path, limit=100)
    journal.add("whole")
    journal.close()
    with path.open("ab") as file:
        file.write(damage)
    again = opened(path, limit=100)
    assert names(again) == ["whole"]
    assert again.add("next").seq == 2
    again.close()
    once_more = opened(path, limit=100)
    assert names(once_more) == ["whole", "next"]
    assert once_more.add("last").seq == 3, "a number is never given twice"
    once_more.close()


async def test_the_file_is_bounded_over_many_short_lives_too(path):
    for _ in range(10):
        journal = opened(path, limit=10)
        for _ in range(9):
            journal.add("x")
        journal.close()
    assert len(path.read_text().splitlines()) <= 20


async def test_a_full_disk_costs_nothing_but_the_file_and_that_only_for_a_time(path, monkeypatch):
    said = io.StringIO()
    journal = opened(path, limit=3, log=Log("test", stream=said))
    journal.add("before")

    def full(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write", full)
        for number in range(8):
            journal.add(f"during {number}")
    assert names(journal) == ["during 5", "during 6", "during 7"]
    assert [json.loads(line)["event"] for line in said.getvalue().splitlines()] == ["journal_not_written"]
    journal.add("after")
    assert [path.name for path in path.parent.iterdir()] == [path.name]
    journal.close()
    again = opened(path, limit=3)
    assert names(again) == ["during 6", "during 7", "after"] and again.add("next").seq == 11
    again.close()


async def test_fields_of_any_kind_can_be_noted(path):
    journal = opened(path, limit=5)
    assert journal.add("odd", path=path).fields == {"path": str(path)}
    journal.close()
