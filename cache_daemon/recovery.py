"""Rebuilding the index from the files' own headers: at start, and for a writer that died after its link. There is no database.

Recovery runs in slices between the loop's other work, so the daemon answers pings and lookups from the first moment;
reservations are refused until it is done, because only then the used bytes are known.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cache_daemon.actions import Salvage
from cache_daemon.catalog import Catalog
from cache_daemon.entries import Copy
from cache_daemon.removing import remove
from cache_daemon.segment_files import REMOVED, FoundFile, Worth, payload_is_good, read_segment_file
from cache_daemon.tiers.directory import TierDirectory

SLICE_FILES = 200
"""About 5 ms of work."""


@dataclass(slots=True)
class RecoveryReport:
    """What recovery met. `num_by_worth`: files that were not adopted, by reason."""

    num_adopted: int = 0
    num_by_worth: Counter[str] = field(default_factory=Counter)
    started_s: float = 0.0
    took_s: float = 0.0


def recover(catalog: Catalog, tiers: list[TierDirectory], report: RecoveryReport) -> Iterator[None]:
    """Adopt every good file of every tier, fastest tier first; yields after each slice."""
    catalog.recovering = True
    report.started_s = time.monotonic()
    for tier in sorted(tiers, key=lambda t: t.spec.speed):
        for number, entry in enumerate(tier.files()):
            _adopt_or_remove(catalog, tier.spec.name, entry.path, entry.name, report)
            if number % SLICE_FILES == SLICE_FILES - 1:
                yield
        yield
    catalog.recovering = False
    for tier in tiers:
        catalog.holdings.trim(tier.spec.name)
    report.took_s = time.monotonic() - report.started_s


def _adopt_or_remove(catalog: Catalog, tier: str, path: str, name: str, report: RecoveryReport) -> None:
    found = read_segment_file(path, name)
    if isinstance(found, Worth):
        report.num_by_worth[found.value] += 1
        catalog.holdings.tally.count(f"recovery_{found.value}")
        if found in REMOVED:
            remove(path)
        return
    report.num_adopted += 1
    _adopt(catalog, tier, tier, found, verified=False)


def salvage(catalog: Catalog, action: Salvage) -> bool:
    """After a writer's end: adopt the file it had linked, if it is good to the last byte. Returns whether it was.

    The payload is read here, unlike at start: a writer that died may have died of what it wrote.
    """
    remove(action.temporary)
    found = read_segment_file(action.final, Path(action.final).name)
    if isinstance(found, FoundFile) and payload_is_good(action.final, found.header):
        catalog.salvaged(action, (action.tier, found.inode))
        _adopt(catalog, action.tier, action.target_tier, found, verified=True)
        return True
    if isinstance(found, FoundFile) or found in REMOVED:
        remove(action.final)
    catalog.salvaged(action, None)
    return False


def _adopt(catalog: Catalog, tier: str, target_tier: str, found: FoundFile, *, verified: bool) -> None:
    header = found.header
    copy = Copy(tier, found.inode, found.generation, found.file_bytes, recyclable=False, verified=verified)
    catalog.adopt(header.meta, copy, header.payload_bytes, header.created_ns / 1e9, found.modified_s, target_tier)
