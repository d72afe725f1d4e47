"""`python -m cache_daemon`: the cache daemon of the host that the environment names.

Start: die with the parent, wait for an older daemon's lock, open the tiers, bind `cache.sock`, serve while the index is rebuilt.
Stop (SIGTERM, SIGINT): leave when the last worker has left, because SIGTERM reaches all processes at once and the workers' last
saves come here; then finish what is being carried to disk.
"""

import fcntl
import os
import secrets
import signal
import sys
import time

import zmq

from cache_daemon.catalog import Catalog, CatalogSettings
from cache_daemon.entries import TierSpec
from cache_daemon.service import CacheService
from cache_daemon.settings import plan_tiers
from cache_daemon.tiers.directory import TierBusy, TierDirectory
from erllama_host.config import CacheConfig, Paths, find_paths, load_config, longest_stop_s
from erllama_host.errors import ConfigError
from erllama_host.ids import new_incarnation
from erllama_host.observability import Log
from erllama_host.process import ExitCode, die_with_parent, set_oom_score
from erllama_host.supervisor import notes
from erllama_host.transport.sockets import router

LOCK_WAIT_S = 60.0
LOCK_POLL_S = 0.05
LEAST_STOP_GRACE_S = 35.0
OOM_SCORE = -200
WATCHER = "cache"


def main() -> int:
    """Run until stopped; returns the exit code."""
    die_with_parent()
    set_oom_score(OOM_SCORE)
    paths = find_paths()
    try:
        config = load_config(paths.config_file)
        paths.prepare()
        log = Log("cache", config.host.log_level)
        return _run(paths, config.cache, log)
    except ConfigError as error:
        Log("cache").error("bad_config", why=error.message)
        return ExitCode.BAD_CONFIG


def stop_grace_s(paths: Paths) -> float:
    """How long the daemon waits for workers to leave: as long as the slowest of those that run now may take."""
    return max(LEAST_STOP_GRACE_S, longest_stop_s(paths))


def _run(paths: Paths, config: CacheConfig, log: Log) -> int:
    lock_fd = _take_lock(paths, log)
    if lock_fd is None:
        return ExitCode.CRASHED
    plan = plan_tiers(config, paths)
    for note in plan.notes:
        log.warning("tier_note", note=note)
    tiers = open_tiers(plan.tiers, log)
    catalog = Catalog([tier.spec for tier in tiers], catalog_settings(config))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = router(context)
    socket.bind(paths.ipc("cache.sock"))
    service = CacheService(catalog, tiers, socket, log, incarnation=new_incarnation(time.time_ns()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.stop(stop_grace_s(paths)))
    # By the daemon itself: whoever asks it now and then may miss a life that is short, and three lives that were never ready
    # are one too many for the supervisor.
    notes.mark_ready(paths.run, WATCHER, os.getpid())
    service.run()
    socket.close()
    context.term()
    for tier in tiers:
        tier.close()
    os.close(lock_fd)
    return ExitCode.CLEAN


def _take_lock(paths: Paths, log: Log) -> int | None:
    """Wait for the daemon before us to leave; the kernel drops its lock however it ends."""
    fd = os.open(paths.run / "cache.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            log.rate_limited("waiting_for_the_daemon_before_us")
            time.sleep(LOCK_POLL_S)
    log.error("another_daemon_serves", lock=str(paths.run / "cache.lock"))
    os.close(fd)
    return None


def open_tiers(specs: list[TierSpec], log: Log) -> list[TierDirectory]:
    """Open the tiers' directories. One that another host has, or that cannot be made, is left out, with a warning.

    Raises:
        ConfigError: the built-in `ram` tier cannot be opened; nothing works without it.
    """
    tiers = []
    for spec in specs:
        try:
            tier = TierDirectory(spec)
            tiers.append(tier)
            log.debug("tier_opened", tier=spec.name, path=spec.path, swept_files=tier.num_swept)
        except (TierBusy, ConfigError) as error:
            if spec.name == "ram":
                raise ConfigError(f"cache tier 'ram' cannot be used: {error}", key="cache.ram_path") from error
            log.warning("tier_left_out", tier=spec.name, why=str(error))
    return tiers


def catalog_settings(config: CacheConfig) -> CatalogSettings:
    """Parameters of this life of the daemon."""
    return CatalogSettings(
        block_tokens=config.block_tokens,
        lease_ttl_s=config.lease_ttl_s,
        reservation_ttl_s=config.reservation_ttl_s,
        hold_s=config.hold_s,
        first_id=(secrets.randbits(40) << 22) + 1,
        wall_offset_s=time.time() - time.monotonic(),
    )


if __name__ == "__main__":
    sys.exit(main())
