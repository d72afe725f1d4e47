"""The table of replies and its file."""

from workers.chat.replay import ReplayTable


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
