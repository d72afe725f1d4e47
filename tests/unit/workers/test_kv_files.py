"""The file stages of a save, on a real directory: sealed, linked once, adopted when somebody was first, junk replaced."""

import ctypes
import errno
import os

import pytest

from erllama_host.kv.segment import file_name
from tests.support.rows import BLOCK, Row
from workers.kv_files import link_final, open_reserved, payload_address, payload_checksum, read_header, seal

META = Row(range(BLOCK)).blocks()[0]
PAYLOAD = b"state" * 2000


def packed(path, payload=PAYLOAD, meta=META, generation=1, mapped=None):
    """A sealed temporary file: (mapping, header)."""
    mapping = open_reserved(str(path), 20_480, generation, mapped)
    address, room = payload_address(mapping, meta)
    assert address % 4096 == 0 and room >= len(payload)
    ctypes.memmove(address, payload, len(payload))
    *_, payload_sum = payload_checksum(mapping, address - mapping.address, len(payload))
    return mapping, seal(mapping, meta, len(payload), payload_sum)


@pytest.fixture
def final(tmp_path):
    path = tmp_path / file_name(META.key, META.kind)
    path.parent.mkdir()
    return path


def test_a_sealed_file_is_linked_and_read_back(tmp_path, final):
    mapping, header = packed(tmp_path / "t")
    linked = link_final(str(tmp_path / "t"), str(final), mapping, header)
    assert (linked.inode, linked.payload_bytes, linked.adopted) == (final.stat().st_ino, len(PAYLOAD), False)
    assert not (tmp_path / "t").exists()
    assert read_header(mapping) == header
    assert final.read_bytes()[header.payload_offset :].startswith(PAYLOAD)
    mapping.close()


def test_nothing_is_published_when_the_reservation_was_lost(tmp_path, final):
    mapping, header = packed(tmp_path / "t")
    (tmp_path / "t").unlink()
    assert link_final(str(tmp_path / "t"), str(final), mapping, header) is None
    assert not final.exists()
    mapping.close()


def test_nothing_is_published_under_a_name_that_cannot_be_had(tmp_path, final, monkeypatch):
    mapping, header = packed(tmp_path / "t")
    final.mkdir()
    assert link_final(str(tmp_path / "t"), str(final), mapping, header) is None

    def full(*_):
        raise OSError(errno.ENOSPC, "no inode left")

    monkeypatch.setattr(os, "link", full)
    assert link_final(str(tmp_path / "t"), str(final), mapping, header) is None
    mapping.close()


def test_who_comes_second_adopts_what_is_there(tmp_path, final):
    first, header = packed(tmp_path / "a")
    link_final(str(tmp_path / "a"), str(final), first, header)
    second, its_header = packed(tmp_path / "b")
    linked = link_final(str(tmp_path / "b"), str(final), second, its_header)
    assert linked.adopted and linked.inode == first.inode
    assert not (tmp_path / "b").exists() and final.stat().st_nlink == 1
    first.close()
    second.close()


@pytest.mark.parametrize("junk", [b"", b"junk" * 4000, "damaged"])
def test_junk_under_the_name_is_replaced(tmp_path, final, junk):
    mapping, header = packed(tmp_path / "t")
    if junk == "damaged":
        other, its_header = packed(tmp_path / "o")
        link_final(str(tmp_path / "o"), str(final), other, its_header)
        ctypes.memset(payload_address(other, META)[0], 0, 10)
        other.close()
    else:
        final.write_bytes(junk)
    linked = link_final(str(tmp_path / "t"), str(final), mapping, header)
    assert not linked.adopted and linked.inode == final.stat().st_ino == mapping.inode
    mapping.close()


def test_a_recycled_file_shows_its_new_generation_before_anything_else(tmp_path, final):
    mapping, header = packed(tmp_path / "t")
    link_final(str(tmp_path / "t"), str(final), mapping, header)
    final.rename(tmp_path / "u")
    again = open_reserved(str(tmp_path / "u"), 20_480, 2, mapping)
    assert again is mapping and mapping.generation == 2
    assert header_is_still_the_old_one(mapping, header)
    mapping.close()


def header_is_still_the_old_one(mapping, header):
    found = read_header(mapping)
    return found == header


def test_a_recycled_file_that_is_not_mapped_is_opened(tmp_path):
    mapping, _ = packed(tmp_path / "t")
    mapping.close()
    again = open_reserved(str(tmp_path / "t"), 20_480, 2, None)
    assert again.generation == 2 and again.num_bytes == 20_480
    again.close()
    with pytest.raises(FileNotFoundError):
        open_reserved(str(tmp_path / "gone"), 20_480, 3, None)


def test_short_and_foreign_mappings_have_no_header(tmp_path):
    mapping = open_reserved(str(tmp_path / "t"), 4096, 1, None)
    assert read_header(mapping) is None
    mapping.close()
    mapping, _ = packed(tmp_path / "u")
    mapping.close()
    with (tmp_path / "u").open("r+b") as file:
        file.truncate(8192)
    cut = open_reserved(str(tmp_path / "u"), 0, 2, None)
    assert read_header(cut) is None
    cut.close()
