"""Every error leaves with a documented code."""

import pytest

from erllama_host.cli.exits import MEANING, Exit, exit_code
from erllama_host.errors import BY_CODE


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_has_an_exit_code(code):
    assert exit_code(BY_CODE[code]("no")) in MEANING
    assert exit_code(BY_CODE[code]("no")) not in (Exit.OK, Exit.INTERRUPTED)


def test_what_scripts_rely_on():
    expected = {
        "HostUnavailable": 3,
        "ConfigError": 2,
        "InvalidRequest": 2,
        "ModelLoadFailed": 4,
        "ModelFailed": 4,
        "QueueFull": 5,
        "Timeout": 5,
        "ModelNotLoaded": 1,
        "InternalError": 70,
    }
    assert {code: int(exit_code(BY_CODE[code]("no"))) for code in expected} == expected


def test_every_exit_is_explained():
    assert set(MEANING) == set(Exit)
