"""erllama.toml: every complaint names its key; defaults; tiers; directories."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import msgspec
import pytest

from erllama_host.config import (
    POLICY_KEYS_WITHOUT_EFFECT,
    CacheConfig,
    Config,
    HostSection,
    ModelConfig,
    ModelSpec,
    Paths,
    PolicyConfig,
    TierConfig,
    find_paths,
    load_config,
    longest_stop_s,
    parse_config,
    parse_model_config,
    private_directory,
)
from erllama_host.config.ranges import CACHE_RANGES, HOST_RANGES, MODEL_RANGES, POLICY_RANGES, complaints
from erllama_host.errors import ConfigError

BAD_FILES = [
    ("[models.t]\npath='x'\nn_ctxx=3", "models.t.n_ctxx"),
    ("[models.t]\npath='x'\nn_ctx='big'", "models.t.n_ctx"),
    ("[models.t]\npath='x'\nn_ctx=0", "models.t.n_ctx"),
    ("[models.t]\npath='x'\nn_seq_max=201", "models.t.n_seq_max"),
    ("[models.t]\npath='x'\nn_ctx=100\nn_cells=50", "models.t.n_cells"),
    ("[models.t]\nn_ctx=5", "models.t.path"),
    ("[models.T]\npath='x'", "models.T"),
    ("[models.t]\npath='x'\ntier='ram_file'", "models.t.tier"),
    ("[models.t]\npath='x'\ntier_srv='nvme'", "models.t.tier_srv"),
    ("[models.t]\npath='x'\ntier='ram'\ntier_srv='disk'", "models.t.tier_srv"),
    ("[models.t]\npath='x'\nfingerprint='zz'", "models.t.fingerprint"),
    ("[models.t]\npath='x'\nfingerprint_mode='fast_unsafe'", "models.t.fingerprint"),
    ("[models.t]\npath='x'\nthinking_markers=['<think>']", "models.t.thinking_markers"),
    ("[models.t]\npath='x'\nprompt_lookup=99", "models.t.prompt_lookup"),
    ("[models.t]\npath='x'\nhang_timeout_s=0.5", "models.t.hang_timeout_s"),
    ("[models.t]\npath='x'\nhang_timeout_s=nan", "models.t.hang_timeout_s"),
    ("[models.t]\npath='x'\nload_timeout_s=0", "models.t.load_timeout_s"),
    ("[models.t]\npath='x'\ntype_k='q9'", "models.t.type_k"),
    ("[models.t.policy]\nmin_token=1", "models.t.policy.min_token"),
    ("[cache]\nblock_tokens=3", "cache.block_tokens"),
    ("[cache]\ndefault_tier='x'", "cache.default_tier"),
    ("[cache.tiers.ram]\nkind='ram'", "cache.tiers.ram"),
    ("[cache.tiers.nvme]\nkind='disk'", "cache.tiers.nvme.path"),
    ("[host]\nmemory_low=0.95\nmemory_high=0.9", "host.memory_high"),
    ("[host]\nheartbeat_timeout_s=0", "host.heartbeat_timeout_s"),
    ("[host]\nload_at_once=0", "host.load_at_once"),
    ("[host]\nevent_limit=0", "host.event_limit"),
    ("[host]\nmemory_interval_s=0", "host.memory_interval_s"),
    ("[host]\nheartbeat_timeout_s=nan", "host.heartbeat_timeout_s"),
    ("[host]\ndrain_s=inf", "host.drain_s"),
    ("[host]\nlog_backups=0", "host.log_backups"),
    ("[host]\nmax_clients_pending=0", "host.max_clients_pending"),
    ("[cache]\nram_budget_bytes=-1", "cache.ram_budget_bytes"),
    ("[cache]\nlease_ttl_s=0.0", "cache.lease_ttl_s"),
    ("[cache.tiers.n]\nkind='disk'\npath='/x'\nbudget_bytes=-1", "cache.tiers.n.budget_bytes"),
    ("[models.t]\npath='x'\nkeep_alive_s=-1", "models.t.keep_alive_s"),
    ("[models.t]\npath='x'\nload_timeout_s=inf", "models.t.load_timeout_s"),
    ("[models.t]\npath='x'\nwithin_s=nan", "models.t.within_s"),
    ("[models.t]\npath='x'\nnice=20", "models.t.nice"),
    ("[models.t]\npath='x'\nrope_freq_base=inf", "models.t.rope_freq_base"),
    ("[models.t]\npath='x'\ntensor_split=[0.5, nan]", "models.t.tensor_split"),
    ("[models.t]\npath='x'\n[models.t.policy]\nmin_tokens=-1", "models.t.policy.min_tokens"),
    ("[models.t]\npath='x'\n[models.t.stub]\nload_ms=inf", "models.t.stub.load_ms"),
    ("[hots]\nx=1", "hots"),
    ("[models]\nx=1", "models.x"),
    ("[", "erllama.toml"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key"), BAD_FILES)
def test_a_bad_file_names_the_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert caught.value.details["key"] == key
    assert key in caught.value.message


def test_every_number_has_a_range_or_needs_none() -> None:
    """A new key of `host` or `cache` says what it may be."""
    for section, ranges in ((HostSection, HOST_RANGES), (CacheConfig, CACHE_RANGES), (PolicyConfig, POLICY_RANGES)):
        names = set(section.__struct_fields__)
        assert ranges.keys() <= names
        numbers = {field.name for field in msgspec.structs.fields(section) if {int, float} & set(types_of(field.type))}
        assert numbers - ranges.keys() <= {"memory_high", "memory_low", *POLICY_KEYS_WITHOUT_EFFECT}


def types_of(declared: object) -> tuple[object, ...]:
    return get_args(declared) or (declared,)


def test_the_defaults_are_in_their_ranges() -> None:
    for section, ranges in (
        (HostSection(), HOST_RANGES),
        (CacheConfig(), CACHE_RANGES),
        (ModelConfig(), MODEL_RANGES),
        (PolicyConfig(), POLICY_RANGES),
    ):
        assert list(complaints(section, ranges)) == []


def test_no_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml") == Config()


def test_a_file_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "c.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """Not to the directory of whoever reads it: `erllama keys` would write where the host does not look."""
    file = tmp_path / "etc" / "erllama.toml"
    file.parent.mkdir()
    file.write_text(
        "[host]\nmodel_dirs=['models', '/srv']\nmemory_file='memory.json'\n[remote]\nkeys_dir='keys'\n[cache]\nram_path='ram'\n"
        "[cache.tiers.n]\nkind='disk'\npath='../n'\n[models.a]\npath='a.gguf'\n[models.b]\npath='/b.gguf'\n[models.c]\nbackend='stub'\n"
    )
    here, found = str(file.parent), load_config(file)
    assert found.host.model_dirs == [f"{here}/models", "/srv"] and found.host.memory_file == f"{here}/memory.json"
    assert (found.remote.keys_dir, found.cache.ram_path) == (f"{here}/keys", f"{here}/ram")
    assert found.cache.tiers["n"].path == f"{here}/../n"
    assert [model.path for model in found.models.values()] == [f"{here}/a.gguf", "/b.gguf", ""]


def test_a_tier_is_found_by_kind_or_name() -> None:
    config = parse_config(
        "[cache.tiers.nvme]\nkind='disk'\npath='/x'\n[models.a]\npath='x'\ntier_srv='nvme'\n[models.b]\npath='x'\ntier='disk'"
    )
    assert config.cache.tiers["nvme"].path == "/x"
    assert config.models["a"].tier_srv == "nvme"


def test_load_options_are_checked_like_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_model_config({"path": "x", "n_ctxx": 1}, CacheConfig())
    assert caught.value.details["key"] == "n_ctxx"
    cache = CacheConfig(tiers={"fast": TierConfig(kind="ram_file", path="/y")})
    assert parse_model_config({"path": "x", "tier": "ram_file"}, cache).tier == "ram_file"


def test_paths_follow_the_environment() -> None:
    paths = find_paths(
        {
            "ERLLAMA_HOME": "/h",
            "ERLLAMA_RUN": "/r",
            "ERLLAMA_CONFIG": "/c.toml",
            "ERLLAMA_ENDPOINT": "tcp://127.0.0.1:1",
        }
    )
    assert (str(paths.home), str(paths.run), str(paths.config_file)) == ("/h", "/r", "/c.toml")
    assert paths.endpoint == "tcp://127.0.0.1:1"
    assert find_paths(paths.environment()) == paths


def test_no_id_makes_two_files_one() -> None:
    """Ids may contain dots: a note beside the spec of `a` could be the spec of a model `a.failed`."""
    paths = find_paths({"ERLLAMA_HOME": "/h", "ERLLAMA_RUN": "/r"})
    files = [
        make(name) for make in (paths.spec_file, paths.failure_file) for name in ("a", "a.failed", "a.failed.json")
    ]
    assert len(set(files)) == len(files)


def test_two_run_directories_are_two_instances() -> None:
    first, second = (find_paths({"ERLLAMA_HOME": "/h", "ERLLAMA_RUN": run}) for run in ("/r1", "/r2"))
    assert first.instance != second.instance
    assert first.endpoint == "ipc:///r1/clients.sock"


def test_a_run_directory_too_long_for_sockets_says_so(tmp_path: Path) -> None:
    paths = find_paths({"ERLLAMA_HOME": str(tmp_path / "h"), "ERLLAMA_RUN": str(tmp_path / ("d" * 100))})
    with pytest.raises(ConfigError, match="ERLLAMA_RUN is too long"):
        paths.prepare()


def test_a_directory_open_to_others_is_refused_with_the_way_out(tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    os.chmod(run, 0o755)
    paths = find_paths({"ERLLAMA_HOME": str(tmp_path / "h"), "ERLLAMA_RUN": str(run)})
    with pytest.raises(ConfigError, match="chmod 700"):
        paths.prepare()


@pytest.mark.parametrize(("owner", "refused"), [(os.geteuid(), False), (0, False), (54321, True)])
def test_a_link_is_followed_when_we_or_root_have_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, refused: bool
) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(st_uid=owner))
    if refused:
        with pytest.raises(ConfigError, match="a link made by uid 54321"):
            private_directory(tmp_path / "link", "ERLLAMA_RUN")
    else:
        assert private_directory(tmp_path / "link", "ERLLAMA_RUN") == tmp_path / "link"


def test_prepared_directories_are_private(tmp_path: Path) -> None:
    paths = find_paths({"ERLLAMA_HOME": str(tmp_path / "h"), "ERLLAMA_RUN": str(tmp_path / "r")})
    paths.prepare()
    for directory in (paths.home, paths.run, paths.run / "models", paths.logs):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_the_slowest_save_of_all_models_bounds_the_end_of_a_host(tmp_path):
    paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    assert longest_stop_s(paths) == 0.0
    paths.prepare()
    for model_id, save_s in [("quick", 1.0), ("slow", 100.0)]:
        spec = ModelSpec(model_id=model_id, load_id="1", config=ModelConfig(evict_save_timeout_s=save_s))
        paths.spec_file(model_id).write_bytes(msgspec.json.encode(spec))
    paths.spec_file("junk").write_text("{")
    assert longest_stop_s(paths) == 105.0
