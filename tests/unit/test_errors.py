"""The error tree: stable codes, round trip over the wire, documentation that keeps up."""

import re

import pytest

from erllama_host import errors


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    documented = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    assert documented == set(errors.BY_CODE)


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_every_code_comes_back_from_the_wire_as_its_class(code: str) -> None:
    error = errors.from_wire(code, "what happened", {"field": "x"})
    assert type(error).__name__ == code == error.code
    assert (error.message, error.details) == ("what happened", {"field": "x"})


def test_a_code_of_a_newer_host_is_kept() -> None:
    error = errors.from_wire("SolarFlare", "…")
    assert isinstance(error, errors.InternalError)
    assert error.details["unknown_code"] == "SolarFlare"


@pytest.mark.parametrize("code", ["Timeout", "SolarFlare"])
def test_details_may_have_any_name(code: str) -> None:
    details = {"message": 1, "self": 2, "code": 3}
    assert errors.from_wire(code, "what happened", details).details.items() >= details.items()


def test_retry_after_is_a_number_or_none() -> None:
    assert errors.QueueFull("full", retry_after_s=2).retry_after_s == 2.0
    assert errors.QueueFull("full").retry_after_s is None


def test_what_can_be_retried() -> None:
    retryable = {code for code, cls in errors.BY_CODE.items() if cls.retryable}
    assert retryable == {
        "CapacityError", "QueueFull", "ModelLoading", "SessionBusy", "PeerError", "WorkerDied", "Timeout", "HostUnavailable",
    }  # fmt: skip


def test_a_request_that_kills_its_model_is_not_to_be_sent_again() -> None:
    assert errors.WorkerDied("died").retryable
    assert not errors.WorkerDied("died", poison=True).retryable
    assert not errors.from_wire("WorkerDied", "died", {"poison": True}).retryable
