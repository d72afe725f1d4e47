"""Model ids, refs and incarnations."""

import pytest
from hypothesis import given
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
    assert ids.is_ref(ref)
    assert ids.model_of(ref) == "tiny"
    assert ids.new_ref("tiny") != ref


def test_a_host_ref_belongs_to_no_model() -> None:
    ref = ids.new_ref()
    assert ids.is_ref(ref)
    assert ids.model_of(ref) is None


@given(st.text(max_size=120))
def test_only_refs_are_refs(text: str) -> None:
    model = ids.model_of(text)
    assert model is None or text == f"{model}/{text.rpartition('/')[2]}"


def test_routing_ids_do_not_collide_with_those_zeromq_makes() -> None:
    routing_id = ids.new_routing_id()
    assert routing_id[0] == 1
    assert len(routing_id) == 17


@given(st.integers(0, 2**63 - 2))
def test_a_later_incarnation_sorts_after_an_earlier_one(now_ns: int) -> None:
    assert ids.new_incarnation(now_ns) < ids.new_incarnation(now_ns + 1)
