"""Limits of one worker process, set from outside right after its start: nice value, CPUs, address space.

circus's own `rlimit_*` of `add` cannot be used: it insists on a number in one place and on text in another.
"""

import os
import resource
import sys
from collections.abc import Mapping


def apply_limits(pid: int, environment: Mapping[str, str]) -> None:
    """Set what `environment` (ERLLAMA_NICE, ERLLAMA_CPU_AFFINITY, ERLLAMA_ADDRESS_SPACE_BYTES) asks for.

    Raises:
        OSError: the kernel refuses, e.g. a negative nice value without the privilege, or CPUs that do not exist.
    """
    if "ERLLAMA_NICE" in environment:
        os.setpriority(os.PRIO_PROCESS, pid, int(environment["ERLLAMA_NICE"]))
    if not sys.platform.startswith("linux"):
        return
    if "ERLLAMA_CPU_AFFINITY" in environment:
        os.sched_setaffinity(pid, {int(cpu) for cpu in environment["ERLLAMA_CPU_AFFINITY"].split(",")})
    if "ERLLAMA_ADDRESS_SPACE_BYTES" in environment:
        limit = int(environment["ERLLAMA_ADDRESS_SPACE_BYTES"])
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
