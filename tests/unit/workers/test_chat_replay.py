"""The table of replies and its file."""

import io
import os

import pytest

from erllama_host.observability import Log
from tests.support.backends import open_stub_backend
from workers.chat.prompts import Chat
from workers.chat.replay import SLACK_BYTES, ReplayTable


def test_replies_are_found_by_their_exact_text():
    table = ReplayTable(None, b"model")
    table.remember("hello", [1, 2])
    assert table.find("hello") == [1, 2]
    assert table.find("hello ") is None
    table.remember("hello", [3])
    assert table.find("hello") == [3] and len(table) == 1


def test_the_least_recently_used_are_forgotten():
    table = ReplayTable(None, b"model", max_tokens=4)
    table.remember("a", [1, 1])
    table.remember("b", [2, 2])
    table.find("a")
    table.remember("c", [3])
    assert table.find("b") is None and table.find("a") == [1, 1] and table.find("c") == [3]
    table.remember("too long", [0] * 5)
    assert table.find("too long") is None


def test_the_next_life_knows_them(tmp_path):
    path = tmp_path / "replies" / "tiny.bin"
    table = ReplayTable(path, b"model")
    table.remember("a", [1, 2])
    table.remember("b", [3])
    table.remember("a", [4])
    table.close()
    again = ReplayTable(path, b"model")
    assert (again.find("a"), again.find("b")) == ([4], [3])
    again.close()
    assert path.stat().st_mode & 0o077 == 0


def test_a_torn_end_loses_the_last_record_only(tmp_path):
    path = tmp_path / "tiny.bin"
    table = ReplayTable(path, b"model")
    table.remember("a", [1, 2])
    table.remember("b", [3, 4])
    table.close()
    path.write_bytes(path.read_bytes()[:-3])
    again = ReplayTable(path, b"model")
    assert (again.find("a"), again.find("b")) == ([1, 2], None)
    again.remember("c", [5])
    again.close()
    third = ReplayTable(path, b"model")
    assert (third.find("a"), third.find("c")) == ([1, 2], [5])
    third.close()


def test_a_file_of_another_model_or_junk_is_begun_anew(tmp_path):
    path = tmp_path / "tiny.bin"
    table = ReplayTable(path, b"model")
    table.remember("a", [1])
    table.close()
    other = ReplayTable(path, b"other model")
    assert other.find("a") is None
    other.close()
    path.write_bytes(b"junk")
    again = ReplayTable(path, b"model")
    assert len(again) == 0
    again.close()


def filled_up(table):
    """From now on the filesystem of the table's file is full."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, table._fd)
    os.close(full)


def test_a_full_disk_costs_the_memory_of_the_next_life_and_nothing_else(tmp_path):
    path, lines = tmp_path / "tiny.bin", io.StringIO()
    table = ReplayTable(path, b"model", log=Log("worker", stream=lines))
    table.remember("a", [1])
    filled_up(table)
    table.remember("b", [2])
    table.remember("c", [3])
    assert (table.find("a"), table.find("b"), table.find("c")) == ([1], [2], [3])
    assert lines.getvalue().count("replies_not_kept") == 1
    table.close()
    again = ReplayTable(path, b"model")
    assert (again.find("a"), again.find("b")) == ([1], None)
    again.close()


@pytest.mark.parametrize("obstacle", ["file above", "directory there"])
def test_a_file_that_cannot_be_made_is_done_without(tmp_path, obstacle):
    path = tmp_path / "replies" / "tiny.bin"
    if obstacle == "file above":
        path.parent.write_text("not a directory")
    else:
        path.mkdir(parents=True)
    table = ReplayTable(path, b"model")
    table.remember("a", [1])
    assert table.find("a") == [1]
    table.close()


def test_the_file_of_a_long_life_stays_small(tmp_path):
    path = tmp_path / "tiny.bin"
    table = ReplayTable(path, b"model", max_tokens=1000)
    largest = 0
    for number in range(3000):
        table.remember(str(number), [number] * 100)
        largest = max(largest, path.stat().st_size)
    assert largest < 2 * SLACK_BYTES  # written: 1.3 MB
    table.close()
    again = ReplayTable(path, b"model", max_tokens=1000)
    assert (again.find("2999"), again.find("2990"), again.find("2989")) == ([2999] * 100, [2990] * 100, None)
    again.close()


def test_a_reply_with_control_tokens_in_it_is_more_than_its_text():
    backend, replies = open_stub_backend(), ReplayTable(None, b"model")
    chat = Chat(backend.vocabulary, backend.info, replies)
    chat.remember(backend.vocabulary.tokenize("yes</s>no", parse_special=True))
    assert replies.find("yesno") is None
    chat.remember(backend.vocabulary.tokenize("yesno"))
    assert replies.find("yesno") == list(b"yesno")
