"""The journal of events: bounded, numbered for ever, waited for."""

import asyncio

import pytest

from erllama_host.controller.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


async def test_numbers_grow_over_restarts_and_the_file_is_bounded(path):
    journal = Journal(path, limit=10)
    for number in range(35):
        journal.add("happened", "tiny", number=number)
    journal.close()
    assert len(path.read_text().splitlines()) <= 20
    again = Journal(path, limit=10)
    assert [event.fields["number"] for event in again.since(0, 100).events] == list(range(25, 35))
    assert again.add("more").seq == 36
    again.close()


async def test_since_gives_pages(path):
    journal = Journal(path, limit=100)
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
    journal = Journal(path, limit=100)
    waiting = asyncio.ensure_future(journal.wait_since(0, 10, 20_000))
    await asyncio.sleep(0)
    journal.add("came", model="tiny")
    assert [event.name for event in (await waiting).events] == ["came"]
    assert (await journal.wait_since(1, 10, 10)).events == []
    journal.close()


async def test_damaged_lines_are_passed_over(path):
    journal = Journal(path, limit=100)
    journal.add("whole")
    journal.close()
    with path.open("a") as file:
        file.write('{"seq": 2, "at"\n\xff\n')
    again = Journal(path, limit=100)
    assert [event.name for event in again.since(0, 10).events] == ["whole"]
    assert again.add("next").seq == 2
    again.close()


async def test_fields_of_any_kind_can_be_noted(path):
    journal = Journal(path, limit=5)
    assert journal.add("odd", path=path).fields == {"path": str(path)}
    journal.close()
