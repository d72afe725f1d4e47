"""`-o key=value`."""

import pytest

from erllama_host.cli.load_options import parse_options
from erllama_host.config import CacheConfig, parse_model_config
from erllama_host.errors import ConfigError


def test_values_are_json_where_they_can_be():
    found = parse_options(
        ["n_ctx=4096", "flash_attn=false", "tensor_split=[0.5, 0.5]", "keep_alive_s=null", "split_mode=row"]
    )
    assert found == {
        "n_ctx": 4096,
        "flash_attn": False,
        "tensor_split": [0.5, 0.5],
        "keep_alive_s": None,
        "split_mode": "row",
    }


def test_a_key_of_text_stays_text():
    digits = "1" * 64
    assert parse_options([f"fingerprint={digits}", "type_k=8", "stub.emit=42", "path=/a=b"]) == {
        "fingerprint": digits,
        "type_k": "8",
        "stub": {"emit": "42"},
        "path": "/a=b",
    }


def test_dots_make_tables():
    found = parse_options(["policy.enabled=false", "policy.min_tokens=8", "stub.token_ms=2.5", "backend=stub"])
    assert found == {"policy": {"enabled": False, "min_tokens": 8}, "stub": {"token_ms": 2.5}, "backend": "stub"}
    assert parse_model_config(found, CacheConfig()).policy.min_tokens == 8


@pytest.mark.parametrize("options", [["n_ctx"], ["=5"], ["n_ctx=1", "n_ctx=2"]])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ConfigError):
        parse_options(options)
