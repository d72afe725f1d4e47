"""Mappings: allocated before they are used, kept while idle, closed when nobody uses them."""

import ctypes
import errno
import os
import re
import resource
from pathlib import Path

import pytest

from erllama_host.transport.shm import Mapping, MappingPool, checksum, create_file, map_path, new_digest

FILE = ("ram", 1)


def new_mapping(path, num_bytes=8192) -> Mapping:
    fd = create_file(str(path), num_bytes)
    try:
        return Mapping(fd)
    finally:
        os.close(fd)


def test_files_have_their_space_from_the_start(tmp_path):
    mapping = new_mapping(tmp_path / "a", 100_000)
    assert mapping.num_bytes == 100_000
    assert os.stat(tmp_path / "a").st_blocks * 512 >= 100_000
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        create_file(str(tmp_path / "a"), 1)
    mapping.close()


def test_no_space_is_an_error_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError) as caught:
            create_file(str(tmp_path / "a"), 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert not (tmp_path / "a").exists()


def test_two_mappings_show_one_file(tmp_path):
    ours = new_mapping(tmp_path / "a")
    ours.prefault()
    theirs = map_path(str(tmp_path / "a"))
    assert theirs.inode == ours.inode == os.stat(tmp_path / "a").st_ino
    ours.generation = 2**63 + 7
    ours.write(8, b"header")
    ctypes.memset(ours.address + 4096, 0x41, 3)
    assert theirs.generation == 2**63 + 7
    assert bytes(theirs.view(8, 14)) == b"header"
    assert ctypes.string_at(theirs.address + 4096, 4) == b"AAA\0"
    os.unlink(tmp_path / "a")  # a mapping outlives the name
    assert theirs.generation == ours.generation
    ours.close()
    theirs.close()


def test_pages_read_ahead_are_there(tmp_path):
    pages, ours = 64, new_mapping(tmp_path / "a", 64 * 4096)
    assert resident_kib(tmp_path / "a") == 0
    done = ours.read_ahead(4096 + 5, 33 * 4096)
    assert resident_kib(tmp_path / "a") >= (32 * 4 if done else 0)  # kernels before 5.14 cannot, and say so
    assert bytes(ours.view(0, pages * 4096)) == bytes(pages * 4096)
    ours.close()


def resident_kib(path) -> int:
    """How much of the file this process has pages of."""
    entries = Path("/proc/self/smaps").read_text().partition(str(path))[2]
    return int(re.search(r"^Rss: +(\d+) kB", entries, re.MULTILINE)[1])


def test_empty_and_missing_files_cannot_be_mapped(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError):
        map_path(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError):
        map_path(str(tmp_path / "missing"))


def test_checksums_agree_however_they_are_made():
    digest = new_digest()
    digest.update(b"ab")
    digest.update(memoryview(b"cd"))
    assert digest.intdigest() == checksum(b"abcd") == checksum(memoryview(b"abcd"))


def test_pool_counts_users_and_keeps_the_idle(tmp_path):
    pool = MappingPool()
    mapping = new_mapping(tmp_path / "a")
    assert pool.acquire(FILE) is None
    pool.add(FILE, mapping)
    assert pool.acquire(FILE) is mapping and pool.in_use() == [FILE]
    assert pool.release(FILE) == [] and pool.in_use() == [FILE]
    assert pool.release(FILE) == [] and pool.in_use() == []
    assert pool.acquire(FILE) is mapping
    pool.release(FILE)
    pool.forget_idle()
    assert len(pool) == 0


def test_forgotten_files_close_when_the_last_user_has_left(tmp_path):
    pool = MappingPool()
    pool.add(FILE, new_mapping(tmp_path / "a"))
    assert not pool.forget(FILE)
    assert pool.acquire(FILE) is None and pool.has(FILE)  # nobody new may use it
    assert pool.release(FILE) == [FILE]
    assert pool.forget(FILE) and not pool.has(FILE)


def test_pool_is_bounded(tmp_path):
    pool = MappingPool(max_idle=2)
    for number in range(3):
        pool.add(("ram", number), new_mapping(tmp_path / str(number)))
    gone = [file for number in range(3) for file in pool.release(("ram", number))]
    assert gone == [("ram", 0)] and len(pool) == 2
    pool.forget_idle()
