"""Every check, in the order in which they are made. A check is a function from `Context` to findings; it changes nothing."""

from collections.abc import Callable, Iterator

from erllama_host.doctor.build import check_llama, check_packages
from erllama_host.doctor.context import Context
from erllama_host.doctor.finding import ORDER, Finding
from erllama_host.doctor.leftovers import check_orphaned_memory, check_orphans, check_other_hosts, check_stale_files
from erllama_host.doctor.places import check_clock, check_config, check_directories, check_keys
from erllama_host.doctor.resources import check_disk, check_limits, check_memory, check_shared_memory
from erllama_host.doctor.stored import check_models_file, check_orphaned_files

CHECKS: tuple[Callable[[Context], Iterator[Finding]], ...] = (
    check_config,
    check_directories,
    check_keys,
    check_models_file,
    check_other_hosts,
    check_orphans,
    check_stale_files,
    check_orphaned_memory,
    check_orphaned_files,
    check_shared_memory,
    check_disk,
    check_memory,
    check_limits,
    check_clock,
    check_packages,
    check_llama,
)


def examine(context: Context) -> list[Finding]:
    """Run every check; the worst findings first, otherwise in the order of the checks."""
    found = [finding for check in CHECKS for finding in check(context)]
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))
