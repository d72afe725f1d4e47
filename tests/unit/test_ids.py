"""Model ids, refs and incarnations."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erllama_host import ids
from erllama_host.errors import InvalidRequest


@pytest.mark.parametrize("text", ["tiny", "a", "erllama_model_1", "qwen2.5-7b", "0", "a" * 64])
def test_valid_model_ids_pass(text: str) -> None:
    assert ids.check_model_id(text) == text


@pytest.mark.parametrize("text", ["", "Tiny", "a/b", "../x", ".hidden", "-x", "a b", "a" * 65, "tiny\n", "größe"])
def test_invalid_model_ids_name_the_field_and_the_rule(text: str) -> None:
    with pytest.raises(InvalidRequest, match="must be 1 to 64") as caught:
        ids.check_model_id(text)
    assert caught.value.details["field"] == "model_id"


def test_a_ref_leads_back_to_its_model() -> None:
    ref = ids.new_ref("tiny")
    assert ids.model_of(ref) == "tiny"
    assert ids.new_ref("tiny") != ref


def test_a_host_ref_belongs_to_no_model() -> None:
    ref = ids.new_ref()
    assert ids.model_of(ref) is None


@given(st.from_regex(r"[a-zA-Z0-9@._-]{0,66}/[0-9a-fA-F]{31,33}\n?", fullmatch=True))
@example("tiny/" + "0" * 32)
@example("tiny/" + "0" * 32 + "\n")
@example("@host/" + "0" * 32)
def test_only_refs_are_refs(text: str) -> None:
    name, _, number = text.partition("/")
    try:
        is_ref = ids.check_model_id(name) == name and len(number) == 32 and set(number) <= set("0123456789abcdef")
    except InvalidRequest:
        is_ref = False
    assert ids.model_of(text) == (name if is_ref else None)


def test_routing_ids_do_not_collide_with_those_zeromq_makes() -> None:
    routing_id = ids.new_routing_id()
    assert routing_id[0] == 1
    assert len(routing_id) == 17


@given(st.integers(0, 2**63 - 2))
def test_a_later_incarnation_sorts_after_an_earlier_one(now_ns: int) -> None:
    assert ids.new_incarnation(now_ns) < ids.new_incarnation(now_ns + 1)
