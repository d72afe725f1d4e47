"""Notes, pid files, beats, leftovers, circus.ini: what the supervisor keeps in files."""

import configparser
import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from erllama_host.config import Config, Paths
from erllama_host.supervisor import notes, state
from erllama_host.supervisor.beat_watch import BeatWatch
from erllama_host.supervisor.environment import circus_variables, fill_in_environment
from erllama_host.supervisor.leftovers import (
    clean_run_directory,
    clean_unless_running,
    remove_shared_memory,
    shared_memory_directories,
)
from erllama_host.supervisor.notes import ExitNote
from erllama_host.supervisor.start import last_lines
from erllama_host.supervisor.state import hold, host_state, keep_from_ageing

ROOT = Path(__file__).parents[3]


@pytest.fixture
def paths(tmp_path):
    found = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    found.prepare()
    return found


def test_both_copies_of_circus_ini_are_one():
    assert (ROOT / "circus.ini").read_text() == (ROOT / "erllama_host/supervisor/circus.ini").read_text()


def test_circus_ini_uses_only_variables_that_have_defaults(paths):
    text = (ROOT / "circus.ini").read_text()
    used = {part.partition(")")[0] for part in text.split("$(circus.env.")[1:]}
    assert used <= {name.lower() for name in circus_variables(paths, Config())}


def test_processes_of_the_host_keep_their_bytecode(paths, monkeypatch):
    monkeypatch.setattr(os, "environ", {**paths.environment(), "PYTHONDONTWRITEBYTECODE": "1"})
    umask = os.umask(0o077)
    try:
        fill_in_environment()
    finally:
        os.umask(umask)
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def test_circus_ini_is_safe_and_hooked():
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "circus.ini")
    assert parser["circus"]["multicast_endpoint"] == ""
    assert parser["circus"]["endpoint"].startswith("ipc://") and parser["circus"]["umask"] == "077"
    for watcher in ("watcher:cache", "watcher:controller"):
        hooks = [key for key in parser[watcher] if key.startswith("hooks.")]
        assert len(hooks) == 6 and parser[watcher]["singleton"] == "True"


def test_notes_are_bounded_and_found_by_pid(tmp_path):
    for pid in range(1, 30):
        notes.write_exit(tmp_path, "model:a.b", ExitNote(pid, 0.0, -9))
    assert len(notes.read_exits(tmp_path, "model:a.b")) == notes.MAX_NOTES
    assert notes.exit_of(tmp_path, "model:a.b", 29).exit_code == -9
    assert notes.exit_of(tmp_path, "model:a.b", 1) is None
    assert notes.read_exits(tmp_path, "model:other") == []
    next((tmp_path / "exits").iterdir()).write_text('[{"nonsense": 1}]')
    assert notes.read_exits(tmp_path, "model:a.b") == []
    notes.forget_exits(tmp_path, "model:a.b")
    assert not list((tmp_path / "exits").iterdir())


def test_readiness_is_of_one_process(tmp_path):
    assert not notes.was_ready(tmp_path, "model:x", 5)
    notes.mark_ready(tmp_path, "model:x", 5)
    assert notes.was_ready(tmp_path, "model:x", 5) and not notes.was_ready(tmp_path, "model:x", 6)


def test_names_of_watchers_and_models():
    assert notes.model_of_watcher(notes.watcher_name("a.b-c")) == "a.b-c"
    assert notes.model_of_watcher("cache") is None


def test_a_lock_tells_a_live_host_from_a_stale_file(paths):
    file = paths.run / "host.pid"
    file.write_text("1")
    assert not host_state(paths).running
    lock = hold(file)
    assert lock is not None and host_state(paths).parent_pid == os.getpid()
    assert hold(file, wait_s=0.05) is None
    lock.close()
    assert not host_state(paths).running


def test_a_lock_is_on_the_file_that_others_will_find(paths, monkeypatch):
    """A holder removes its file when it leaves. Who waited has opened that one, and must not think that it keeps anybody out."""
    file, tried = paths.run / "host.pid", threading.Event()
    leaving = hold(file)
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: tried.set()))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(hold, file, 20.0)
        assert tried.wait(20)
        file.unlink()
        leaving.close()
        lock = waiting.result(30)
    assert lock is not None and hold(file, wait_s=0.05) is None
    lock.close()


def test_a_host_that_starts_meanwhile_keeps_its_sockets_and_its_lock(paths):
    """Two `up` at a time, or a `down` beside a supervisor that restarts: nobody cleans under a host, nor lets a second one in."""
    lock = hold(paths.run / "host.pid")
    (paths.run / "clients.sock").write_text("")
    assert clean_unless_running(paths.run) is False
    assert (paths.run / "clients.sock").exists() and hold(paths.run / "host.pid", wait_s=0.05) is None
    lock.close()
    assert clean_unless_running(paths.run) is True
    assert list(paths.run.iterdir()) == []
    assert clean_unless_running(paths.run / "nowhere") is True


def test_the_lock_of_a_process_that_is_still_leaving_stays(paths):
    """A new cache daemon waits for the last one, which may be saving after its supervisor was killed."""
    lock = hold(paths.run / "cache.lock")
    (paths.run / "controller.lock").write_text("1")
    assert clean_unless_running(paths.run) is True
    assert [path.name for path in paths.run.iterdir()] == ["cache.lock"]
    assert hold(paths.run / "cache.lock", wait_s=0.05) is None
    lock.close()


def test_a_run_directory_in_use_is_left_alone_by_whoever_tidies_the_temp_directory(paths):
    """systemd-tmpfiles tries an exclusive lock on a directory before it removes what is old in it."""
    in_use, tidying = keep_from_ageing(paths.run), os.open(paths.run, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(tidying, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(in_use)
    fcntl.flock(tidying, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(tidying)


def test_a_pid_that_is_somebody_elses_is_no_circusd(paths):
    (paths.run / "circusd.pid").write_text(f"{os.getpid()}\n")
    assert host_state(paths).circusd_pid == 0


def test_a_beat_that_stops_is_noticed_and_a_late_judge_is_fair(tmp_path):
    file = tmp_path / "controller.beat"
    watch = BeatWatch(file, 5.0, 0.0)
    assert not watch.is_overdue(7, 1.0)
    file.write_text("7")
    assert not watch.is_overdue(7, 2.0)
    assert not watch.is_overdue(7, 4.0)
    assert not watch.is_overdue(7, 60.0), "nobody looked for 56 s"
    assert not watch.is_overdue(7, 62.0)
    assert watch.is_overdue(7, 64.0)
    assert not watch.is_overdue(8, 65.0), "another process, which has not beaten yet"
    os.utime(file)
    assert not watch.is_overdue(7, 66.0)


def test_leftovers_are_removed_and_nothing_else(paths, tmp_path, monkeypatch):
    shared = shared_memory_directories(paths)[1]
    shared.mkdir()
    other = shared.with_name(shared.name + "x")
    other.mkdir()
    for name in ("clients.sock", "circusd.pid", "host.pid", "controller.beat", "mine.txt"):
        (paths.run / name).write_text("")
    notes.mark_ready(paths.run, "cache", 1)
    remove_shared_memory(paths)
    clean_run_directory(paths.run)
    assert not shared.exists() and other.exists()
    other.rmdir()
    assert [path.name for path in paths.run.iterdir()] == ["mine.txt"]


def test_a_link_in_the_place_of_shared_memory_is_not_followed(paths, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    link = shared_memory_directories(paths)[1]
    link.symlink_to(precious)
    remove_shared_memory(paths)
    assert precious.exists()
    link.unlink()


def test_last_lines(tmp_path):
    file = tmp_path / "x.log"
    assert last_lines(file, 3) == []
    file.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert last_lines(file, 2) == ["line 9998", "line 9999"]
