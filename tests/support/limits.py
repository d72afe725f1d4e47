"""Limits of the test process itself."""

import resource

MANY = 16_384


def allow_many_descriptors() -> None:
    """Hundreds of sockets in one process: more than the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MANY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(MANY, hard), hard))
