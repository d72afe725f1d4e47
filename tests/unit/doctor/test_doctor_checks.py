"""Every finding of `erllama doctor`, from places and processes that are made up."""

import json
import os
import resource
import time
from pathlib import Path

import pytest

from erllama_host.config import CacheConfig, Config, ModelConfig, Paths, RemoteSection, TierConfig
from erllama_host.doctor import leftovers
from erllama_host.doctor.build import backends_text, check_cpu_flags, check_llama
from erllama_host.doctor.context import Context, gather, instance_of
from erllama_host.doctor.examine import CHECKS, examine
from erllama_host.doctor.leftovers import check_orphaned_memory, check_orphans, check_other_hosts, check_stale_files
from erllama_host.doctor.places import check_clock, check_config, check_directories, check_keys
from erllama_host.doctor.resources import check_disk, check_limits, check_memory, check_shared_memory
from erllama_host.doctor.scan import HostProcess, role_of
from erllama_host.doctor.stored import check_models_file, check_orphaned_files

TIB = 1 << 40


@pytest.fixture
def paths(tmp_path):
    made = Paths(home=tmp_path / "home", run=tmp_path / "run", config_file=tmp_path / "erllama.toml")
    made.home.mkdir(mode=0o700)
    made.run.mkdir(mode=0o700)
    return made


@pytest.fixture
def look(paths, tmp_path):
    """`look(check, config=..., processes=...)` → findings that are not `ok`."""
    shared = tmp_path / "shm"
    shared.mkdir()

    def run(check, config=None, processes=(), **more):
        context = Context(paths, config or Config(), processes=tuple(processes), shared_memory=shared, **more)
        return [finding for finding in check(context) if finding.severity != "ok"]

    return run


def process(paths, role, pid=100, parent_pid=1, run=None, home=None):
    return HostProcess(
        pid=pid, parent_pid=parent_pid, role=role, uid=os.geteuid(), run=run or paths.run, home=home or paths.home
    )


# ---- places ----------------------------------------------------------------------------------------------------------


def test_a_bad_configuration_is_a_problem(paths):
    paths.config_file.write_text("[host]\nload_at_onec = 2\n")
    (finding,) = check_config(gather(paths))
    assert finding.severity == "problem"
    assert "load_at_onec" in finding.what


def test_files_that_go_while_they_are_looked_at_are_no_findings(look, paths, monkeypatch):
    """A host writes beside and renames, and its cache evicts, while doctor looks."""
    lstat, folder = Path.lstat, paths.kv_disk / "ab"
    folder.mkdir(parents=True)
    for file in (paths.run / ".x.json.1", folder / "segment"):
        file.write_text("x")

    def gone(path):
        if path.name in (".x.json.1", "segment"):
            raise FileNotFoundError(path)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", gone)
    assert look(check_clock) == look(check_disk, Config(cache=CacheConfig(disk_budget_bytes=0))) == []


def test_a_model_file_that_is_missing(look, tmp_path):
    (finding,) = look(check_config, Config(models={"tiny": ModelConfig(path=str(tmp_path / "no.gguf"))})) or [None]
    assert finding is None  # without an erllama.toml there is nothing to correct
    (tmp_path / "erllama.toml").write_text("")
    (finding,) = look(check_config, Config(models={"tiny": ModelConfig(path=str(tmp_path / "no.gguf"))}))
    assert "models.tiny.path" in finding.what


def test_an_open_directory_is_closed_by_the_fix(look, paths):
    paths.run.chmod(0o755)
    (finding,) = look(check_directories)
    assert (finding.check, finding.severity) == ("run", "problem")
    assert str(paths.run) in finding.fix()
    assert look(check_directories) == []


def test_a_file_in_place_of_a_directory(look, paths):
    paths.home.rmdir()
    paths.home.write_text("")
    (finding,) = look(check_directories)
    assert "is no directory" in finding.what
    assert not finding.fixable


def test_somebody_elses_directory(look, paths):
    findings = look(check_directories, uid=os.geteuid() + 1)
    assert [finding.severity for finding in findings] == ["problem", "problem"]


def test_a_run_path_too_long_for_sockets(tmp_path):
    run = tmp_path / ("x" * 120)
    context = Context(Paths(tmp_path / "home", run, tmp_path / "e.toml"), Config())
    assert [finding.check for finding in check_directories(context) if finding.severity == "problem"] == ["run-path"]


def test_readable_keys_are_closed_and_missing_ones_told(look, paths):
    (finding,) = look(check_keys, Config(remote=RemoteSection(listen="tcp://127.0.0.1:7700")))
    assert "erllama keys new" in finding.todo
    paths.keys.mkdir()
    (finding,) = look(check_keys, Config(remote=RemoteSection(listen="tcp://127.0.0.1:7700")))
    assert "refuses to start" in finding.what  # the host made its own pair, and that lets nobody in
    secret = paths.keys / "me.key_secret"
    secret.write_text("x")
    secret.chmod(0o644)
    (finding,) = look(check_keys)
    finding.fix()
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_spoilt_key_of_a_client(look, paths):
    clients = paths.keys / "clients"
    clients.mkdir(parents=True)
    clients.joinpath("ann.key").write_text("role = user\n")
    clients.joinpath("ann.key").chmod(0o600)
    (finding,) = look(check_keys)
    assert "ann.key is no key file" in finding.what


def test_a_clock_that_went_back(look, paths):
    (paths.run / "a.json").write_text("{}")
    assert look(check_clock) == []
    (finding,) = look(check_clock, now=time.time() - 3600)
    assert "set back" in finding.what


# ---- leftovers -------------------------------------------------------------------------------------------------------


def test_two_supervisors_on_one_directory(look, paths):
    (finding,) = look(check_other_hosts, processes=[process(paths, "circusd", 10), process(paths, "circusd", 11)])
    assert "pids 10, 11" in finding.what


def test_another_host_on_the_same_home(look, paths, tmp_path):
    (finding,) = look(check_other_hosts, processes=[process(paths, "circusd", run=tmp_path / "other")])
    assert str(tmp_path / "other") in finding.what
    assert (
        look(
            check_other_hosts,
            processes=[process(paths, "circusd", run=tmp_path / "other", home=tmp_path / "elsewhere")],
        )
        == []
    )


def test_a_process_that_lost_its_supervisor(look, paths):
    family = [process(paths, "circusd", 10), process(paths, "cache", 11, parent_pid=10)]
    assert look(check_orphans, processes=family) == []
    (finding,) = look(check_orphans, processes=family[1:])
    assert "kill 11" in finding.todo
    assert not finding.fixable


def test_stale_sockets_are_removed(look, paths):
    (paths.run / "clients.sock").write_text("")
    (paths.run / "circusd.pid").write_text("1")
    assert look(check_stale_files, processes=[process(paths, "circusd")]) == []
    (finding,) = look(check_stale_files)
    assert "circusd.pid, clients.sock" in finding.what
    finding.fix()
    assert look(check_stale_files) == []


def test_shared_memory_of_a_dead_host_is_removed_and_of_a_live_one_kept(look, paths, tmp_path):
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    folders = {run: tmp_path / "shm" / f"erllama-{os.geteuid()}-{instance_of(run)}" for run in (alive, dead)}
    for folder in folders.values():
        folder.mkdir()
        (folder / "segment").write_bytes(b"x" * 4096)
    (finding,) = look(check_orphaned_memory, processes=[process(paths, "cache", run=alive)])
    assert str(folders[dead]) in finding.what
    finding.fix()
    assert folders[alive].exists()
    assert not folders[dead].exists()


def test_shared_memory_of_a_host_that_has_started_meanwhile_is_kept(look, paths, tmp_path, monkeypatch):
    folder = tmp_path / "shm" / f"erllama-{os.geteuid()}-{instance_of(paths.run)}"
    folder.mkdir()
    (finding,) = look(check_orphaned_memory)
    monkeypatch.setattr(leftovers, "scan_processes", lambda: [process(paths, "cache")])
    assert "its host runs" in finding.fix()
    assert folder.exists()


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python3 -m cache_daemon", "cache"),
        ("/x/bin/python -m erllama_host.controller", "controller"),
        ("python -m workers tiny", "model:tiny"),
        ("python -m erllama_host.supervisor --detach", "parent"),
        ("python -m circus.circusd --logger-config a.ini circus.ini", "circusd"),
        ("/usr/bin/python /x/bin/circusd circus.ini", "circusd"),
        ("python -m workers.chat.sandbox", "helper"),
        ("python -m http.server", None),
        ("vi workers", None),
        ("python -m workers", None),
        ("python", None),
    ],
)
def test_roles_are_read_off_command_lines(command, role):
    assert role_of(command.split()) == role


def test_a_model_that_is_wanted_and_gone(look, paths, tmp_path):
    there = tmp_path / "there.gguf"
    there.write_text("")
    wanted = {
        "a": {"config": {"path": str(there)}},
        "b": {"config": {"path": "/no/such.gguf"}},
        "c": {"config": {"backend": "stub"}},
    }
    paths.models_file.write_text(json.dumps({"models": wanted}))
    (finding,) = look(check_models_file)
    assert "b is wanted" in finding.what
    assert finding.todo.endswith("erllama unload b")


def test_a_damaged_list_of_models(look, paths):
    paths.models_file.write_text('{"models": 7}')
    (finding,) = look(check_models_file)
    assert "cannot be read" in finding.what
    (paths.home / "models.json.damaged-1").write_text("")
    (finding,) = look(check_orphaned_files)
    assert "set aside" in finding.what
    assert not finding.fixable


def test_half_written_files_of_the_dead_are_removed_and_those_of_the_living_kept(look, paths):
    living = paths.home / f".models.json.{os.getpid()}"
    dead = paths.home / f".models.json.{2**22 + 1}"  # beyond the kernel's largest pid
    for path in (living, dead):
        path.write_text("{")
    (finding,) = look(check_orphaned_files)
    finding.fix()
    assert living.exists()
    assert not dead.exists()


# ---- resources -------------------------------------------------------------------------------------------------------


def test_shared_memory_that_is_not_there(tmp_path, paths):
    context = Context(paths, Config(), shared_memory=tmp_path / "nowhere")
    (finding,) = check_shared_memory(context)
    assert finding.severity == "warning"


def test_a_budget_larger_than_shared_memory(look):
    (finding,) = look(check_shared_memory, Config(cache=CacheConfig(ram_budget_bytes=TIB * 1000)))
    assert "ram_budget_bytes" in finding.what


def test_a_budget_larger_than_the_disk(look, tmp_path):
    tiers = {"big": TierConfig(kind="disk", path=str(tmp_path / "a" / "b"), budget_bytes=TIB * 1000)}
    (finding,) = look(check_disk, Config(cache=CacheConfig(disk_budget_bytes=1, tiers=tiers)))
    assert "tier big" in finding.what


def test_few_open_files(look, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 1 << 20))
    (finding,) = look(check_limits)
    assert (finding.check, finding.severity) == ("open-files", "problem")
    assert "ulimit -n 4096" in finding.todo
    findings = look(check_limits, Config(models={"tiny": ModelConfig(path="x", use_mlock=True)}))
    assert [finding.check for finding in findings] == ["open-files", "locked-memory"]


def test_models_that_do_not_fit_into_memory(look, tmp_path):
    big = tmp_path / "big.gguf"
    with big.open("wb") as file:
        file.truncate(TIB * 10)
    (finding,) = look(check_memory, Config(models={"big": ModelConfig(path=str(big))}))
    assert "lazy = true" in finding.todo
    assert look(check_memory, Config(models={"big": ModelConfig(path=str(big), lazy=True)})) == []


# ---- the build -------------------------------------------------------------------------------------------------------

SYSTEM = "CPU : SSE3 = 1 | AVX2 = 1 | FMA = 1 | LLAMAFILE = 1 | REPACK = 0 |"


def test_flags_of_the_build_are_read():
    assert backends_text({"gpu": False, "system": SYSTEM}) == "CPU only; SSE3, AVX2, FMA, LLAMAFILE"


def test_a_build_that_leaves_the_cpu_unused():
    assert list(check_cpu_flags(SYSTEM, frozenset({"avx2", "fma", "avx512f"}))) == []
    (finding,) = check_cpu_flags("CPU : SSE3 = 1 |", frozenset({"avx2", "fma"}))
    assert "AVX2, FMA" in finding.what
    assert "GGML_NATIVE" in finding.todo


def test_a_build_that_does_not_load(look, monkeypatch):
    monkeypatch.setattr("erllama_host.doctor.build._PROBE", "import sys; sys.exit('libllama.so: cannot open')")
    (finding,) = look(check_llama)
    assert finding.severity == "problem"
    assert "libllama.so: cannot open" in finding.what


# ---- all of them -----------------------------------------------------------------------------------------------------


def test_the_worst_comes_first_and_nothing_was_changed(paths, monkeypatch):
    monkeypatch.setattr(
        "erllama_host.doctor.build._PROBE", 'print(\'{"version": "0", "system": "", "gpu": false, "mmap": true}\')'
    )
    paths.run.chmod(0o755)
    (paths.run / "clients.sock").write_text("")
    found = examine(gather(paths))
    order = [finding.severity for finding in found]
    assert order == sorted(order, key=["problem", "warning", "info", "ok"].index)
    assert (paths.run / "clients.sock").exists()
    assert all(finding.todo for finding in found if finding.severity in ("problem", "warning"))
    assert len(CHECKS) == len(set(CHECKS))
