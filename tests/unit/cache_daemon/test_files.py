"""Files on a real filesystem: judged, carried to another tier, swept; and directories that are refused."""

import dataclasses
import errno
import io
import os
import resource
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cache_daemon.__main__ import open_tiers
from cache_daemon.actions import Carry
from cache_daemon.catalog import Catalog, CatalogSettings
from cache_daemon.entries import TierSpec
from cache_daemon.recovery import RecoveryReport, recover, salvage
from cache_daemon.segment_files import FoundFile, Worth, payload_is_good, read_segment_file
from cache_daemon.settings import plan_tiers
from cache_daemon.tiers.directory import TierBusy, TierDirectory
from cache_daemon.writebehind import Arrived, NotArrived, carry
from erllama_host.config import CacheConfig, Paths, TierConfig
from erllama_host.errors import ConfigError
from erllama_host.kv.segment import SegmentHeader, encode_header, file_name, payload_offset
from erllama_host.observability import Log
from erllama_host.transport.shm import checksum
from tests.support.rows import BLOCK, Row

PAYLOAD = b"payload " * 600
ROW = Row(range(2 * BLOCK + 3))
META = ROW.blocks()[0]


def segment_bytes(meta=META, payload=PAYLOAD, generation=1) -> bytes:
    header = SegmentHeader(meta, 123, len(payload), checksum(payload))
    head = struct.pack("<Q", generation) + encode_header(header, checksum)
    return head.ljust(payload_offset(meta.num_tokens), b"\0") + payload


def write_segment(tier: Path, meta=META, data: bytes | None = None) -> Path:
    path = tier / file_name(meta.key, meta.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(segment_bytes(meta) if data is None else data)
    return path


def open_tier(path: Path, kind="ram") -> TierDirectory:
    return TierDirectory(TierSpec("ram", kind, str(path), 1 << 30))


def test_a_good_file_is_found_with_everything(tmp_path):
    path = write_segment(tmp_path, data=segment_bytes(generation=9))
    found = read_segment_file(str(path), path.name)
    assert isinstance(found, FoundFile)
    assert (found.header.meta, found.generation, found.inode) == (META, 9, path.stat().st_ino)
    assert payload_is_good(str(path), found.header)


@pytest.mark.parametrize(
    ("damage", "worth"),
    [
        (lambda data: data[:5000], Worth.JUNK),
        (lambda data: b"", Worth.JUNK),
        (lambda data: b"\0" * 9000, Worth.JUNK),
        (lambda data: data[:16] + b"\0\0" + data[18:], Worth.OLDER),
        (lambda data: data[:16] + b"\xff\0" + data[18:], Worth.NEWER),
        (lambda data: segment_bytes(ROW.blocks()[1]), Worth.JUNK),
    ],
)
def test_files_that_are_not_good_are_told_apart(tmp_path, damage, worth):
    path = write_segment(tmp_path, data=damage(segment_bytes()))
    assert read_segment_file(str(path), path.name) is worth


def test_foreign_names_links_and_missing_files_are_left_alone(tmp_path):
    path = write_segment(tmp_path)
    assert read_segment_file(str(path), "notes.txt") is Worth.FOREIGN
    link = path.with_suffix(".tail")
    link.symlink_to(path)
    assert read_segment_file(str(link), link.name) is Worth.FOREIGN
    path.unlink()
    assert read_segment_file(str(path), path.name) is Worth.FOREIGN


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_left_alone_and_waits_for_nobody(tmp_path, make):
    path = write_segment(tmp_path)
    path.unlink()
    make(path)
    assert read_segment_file(str(path), path.name) is Worth.FOREIGN


def test_a_file_that_the_disk_does_not_give_is_left_alone(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    tier = open_tier(tmp_path / "tier")
    path = write_segment(tier.path)
    catalog, report = Catalog([tier.spec], CatalogSettings(block_tokens=BLOCK)), RecoveryReport()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        assert list(recover(catalog, [tier], report)) is not None
    assert report.num_by_worth == {"unreadable": 1} and path.exists() and not catalog.holdings.entries
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", broken)
        assert list(tier.files()) == []
    tier.close()


def test_a_header_longer_than_a_page_is_read(tmp_path):
    long_row = Row(range(2000), block=2000)
    path = write_segment(tmp_path, long_row.blocks()[0], segment_bytes(long_row.blocks()[0]))
    assert isinstance(read_segment_file(str(path), path.name), FoundFile)


def test_damaged_payloads_are_noticed(tmp_path):
    path = write_segment(tmp_path, data=segment_bytes()[:-1] + b"!")
    found = read_segment_file(str(path), path.name)
    assert isinstance(found, FoundFile) and not payload_is_good(str(path), found.header)
    assert not payload_is_good(str(tmp_path / "missing"), found.header)


def test_recovery_adopts_counts_and_cleans(tmp_path):
    tier = tmp_path / "tier"
    for meta in ROW.all():
        write_segment(tier, meta)
    (tier / "tmp").mkdir()
    (tier / "tmp" / "5f").write_bytes(b"half")
    tier.chmod(0o700)
    directory = open_tier(tier)
    assert directory.num_swept == 1 and not list((tier / "tmp").iterdir())
    catalog, report = Catalog([directory.spec], CatalogSettings(block_tokens=BLOCK)), RecoveryReport()
    for _ in recover(catalog, [directory], report):
        assert catalog.recovering
    assert not catalog.recovering and report.num_adopted == 3
    sizes = sum(path.stat().st_size for path in tier.glob("??/*.*"))
    assert catalog.holdings.stocks["ram"].ledger.used_bytes == sizes
    directory.close()


def test_recovery_trims_a_tier_that_became_smaller(tmp_path):
    for meta in ROW.all():
        write_segment(tmp_path / "tier", meta)
    (tmp_path / "tier").chmod(0o700)
    directory = open_tier(tmp_path / "tier")
    spec = TierSpec("ram", "ram", directory.spec.path, 10_000)
    catalog = Catalog([spec], CatalogSettings(block_tokens=BLOCK))
    for _ in recover(catalog, [directory], RecoveryReport()):
        pass
    assert list(catalog.holdings.entries) == [(META.key, META.kind)]
    directory.close()


@pytest.mark.parametrize(
    ("data", "adopted"), [(segment_bytes(), True), (segment_bytes()[:-1] + b"!", False), (b"", False)]
)
def test_what_a_dead_writer_left_is_adopted_only_if_good_to_the_last_byte(tmp_path, data, adopted):
    catalog = Catalog([TierSpec("ram", "ram", str(tmp_path), 1 << 30)], CatalogSettings(block_tokens=BLOCK))
    held = catalog.reserve("w", "ram", META, 9000, 0.0)
    catalog.worker_gone("w", 0.0)
    final, temporary = write_segment(tmp_path, data=data), tmp_path / "half"
    temporary.touch()
    (action,) = catalog.take_actions()
    action = dataclasses.replace(action, temporary=str(temporary))
    assert action.final == str(final) and action.file_bytes == held.file_bytes
    assert salvage(catalog, action) == adopted
    assert catalog.holdings.stocks["ram"].ledger.used_bytes == (final.stat().st_size if adopted else 0)
    assert final.exists() == adopted and not temporary.exists()
    assert ((META.key, META.kind) in catalog.holdings.entries) == adopted


def carry_of(tmp_path, size=None) -> Carry:
    source = write_segment(tmp_path / "ram", data=segment_bytes(generation=7).ljust(12_288, b"\0"))
    (tmp_path / "disk").mkdir(exist_ok=True)
    final = tmp_path / "disk" / source.name
    return Carry((META.key, META.kind), str(source), "disk", str(tmp_path / "t"), str(final), size or 12_288)


def test_carrying_copies_whole_files(tmp_path):
    action = carry_of(tmp_path)
    arrived = carry(action)
    assert arrived == Arrived(os.stat(action.final).st_ino, 7, 12_288)
    assert Path(action.final).read_bytes() == Path(action.source).read_bytes()
    assert not Path(action.temporary).exists()


def test_carrying_that_fails_leaves_nothing(tmp_path):
    too_long = carry_of(tmp_path, size=20_000)
    failed = carry(too_long)
    assert isinstance(failed, NotArrived) and not failed.no_space
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        full = carry(carry_of_existing(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(full, NotArrived) and full.no_space
    assert not Path(too_long.temporary).exists() and not list((tmp_path / "disk").iterdir())


def test_carrying_into_a_directory_that_is_gone_is_no_more_than_a_failure(tmp_path):
    carry_of(tmp_path, size=12_288)
    (tmp_path / "not-a-directory").write_text("")
    lost = replace(carry_of_existing(tmp_path), temporary=str(tmp_path / "not-a-directory" / "t"))
    assert isinstance(carry(lost), NotArrived)


def carry_of_existing(tmp_path) -> Carry:
    source = tmp_path / "ram" / file_name(META.key, META.kind)
    final = tmp_path / "disk" / source.name
    return Carry((META.key, META.kind), str(source), "disk", str(tmp_path / "t"), str(final), 12_288)


def test_a_tier_has_one_daemon(tmp_path):
    first = open_tier(tmp_path / "tier")
    with pytest.raises(TierBusy):
        open_tier(tmp_path / "tier")
    first.close()
    open_tier(tmp_path / "tier").close()


def test_a_tier_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "tier").mkdir(mode=0o755)
    (tmp_path / "tier").chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        open_tier(tmp_path / "tier")


@pytest.mark.parametrize("obstacle", ["lock", "tmp/left", "00"])
def test_a_tier_whose_directory_cannot_be_used_is_left_out(tmp_path, obstacle):
    tier = tmp_path / "disk"
    if obstacle == "00":
        tier.mkdir(mode=0o700)
        (tier / obstacle).write_text("not a directory")
    else:
        (tier / obstacle).mkdir(parents=True)
        tier.chmod(0o700)
    specs = [TierSpec(name, name, str(tmp_path / name), 1 << 20) for name in ("ram", "disk")]
    log = io.StringIO()
    (opened,) = open_tiers(specs, Log("cache", stream=log))
    assert opened.spec.name == "ram" and "tier_left_out" in log.getvalue()
    opened.close()


def paths(tmp_path) -> Paths:
    return Paths(home=tmp_path / "home", run=tmp_path / "run", config_file=tmp_path / "erllama.toml")


def test_tiers_are_placed(tmp_path):
    config = CacheConfig(tiers={"keep": TierConfig(kind="ram_file", path="/mnt/keep", budget_bytes=5)})
    where = paths(tmp_path)
    plan = plan_tiers(config, where)
    by_name = {tier.name: tier for tier in plan.tiers}
    assert by_name["disk"].path == str(where.kv_disk)
    assert by_name["keep"] == TierSpec("keep", "ram_file", "/mnt/keep", 5)
    assert by_name["ram"].path.endswith(f"erllama-{os.geteuid()}-{where.instance}")
    assert 0 < by_name["ram"].budget_bytes <= 8 << 30


def test_the_default_budget_is_the_same_after_a_restart_with_a_full_tier(tmp_path, monkeypatch):
    config, where = CacheConfig(ram_path=str(tmp_path)), paths(tmp_path)
    held = 0
    monkeypatch.setattr(
        "cache_daemon.settings.os.statvfs", lambda _path: SimpleNamespace(f_bavail=(16 << 20) - held, f_frsize=1)
    )
    ram = plan_tiers(config, where).tiers[0]
    assert ram.budget_bytes == 4 << 20
    for number in range(4):
        shard = Path(ram.path) / f"{number:02x}"
        shard.mkdir(parents=True)
        with (shard / "segment").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
    held = 4 << 20
    assert plan_tiers(config, where).tiers[0].budget_bytes == 4 << 20


def test_without_shared_memory_another_directory_is_used_and_said(tmp_path):
    plan = plan_tiers(CacheConfig(), paths(tmp_path), shm=tmp_path / "no-shm")
    assert not plan.tiers[0].path.startswith("/dev/shm")
    assert len(plan.notes) == 1 and "no-shm" in plan.notes[0]
    named = plan_tiers(CacheConfig(ram_path=str(tmp_path)), paths(tmp_path), shm=tmp_path / "no-shm")
    assert named.tiers[0].path.startswith(str(tmp_path)) and named.notes == []
