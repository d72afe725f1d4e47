"""AnswerText by example; the property tests say the rest."""

import pytest

from erllama_host.protocol.inference import Part
from workers.backend.stub.vocabulary import SPECIAL_IDS, StubVocabulary
from workers.text import AnswerText, Markers, opening_channel

VOCABULARY = StubVocabulary()
MARKERS = Markers(thinking=("<think>", "</think>"), tool_call=("<tool_call>", "</tool_call>"))


def ids(text):
    return VOCABULARY.tokenize(text, parse_special=True)


def one_by_one(answer, tokens):
    return [answer.push([token]) for token in tokens]


def test_a_character_of_several_bytes_is_shown_when_complete():
    answer = AnswerText(VOCABULARY)
    assert one_by_one(answer, "é€".encode()) == [[], [Part("text", "é")], [], [], [Part("text", "€")]]
    assert answer.finish() == []


def test_an_answer_cut_in_a_character_ends_with_a_replacement():
    answer = AnswerText(VOCABULARY)
    assert answer.push("é".encode()[:1]) == []
    assert answer.finish() == [Part("text", "\ufffd")]


def test_a_stop_string_is_never_shown_even_in_parts():
    answer = AnswerText(VOCABULARY, stop=["END"])
    shown = one_by_one(answer, ids("a EN ENDb"))
    assert [part.text for parts in shown for part in parts] == [
        "a",
        " ",
        "EN ",
    ]
    assert answer.stop_found and answer.stop_string == "END"
    assert answer.push(ids("more")) == [] and answer.finish() == []


def test_held_text_is_released_when_the_answer_ends_without_the_stop():
    answer = AnswerText(VOCABULARY, stop=["END"])
    assert answer.push(ids("x EN")) == [Part("text", "x ")]
    assert answer.finish() == [Part("text", "EN")]
    assert not answer.stop_found


@pytest.mark.parametrize("together", [True, False])
def test_of_two_stop_strings_the_one_complete_first_counts(together):
    answer = AnswerText(VOCABULARY, stop=["abcd", "bc"])
    shown = [answer.push(ids("abcd"))] if together else one_by_one(answer, ids("abcd"))
    assert "".join(part.text for parts in shown for part in parts) == "a"
    assert answer.stop_string == "bc"


def test_markers_switch_the_channel_and_are_not_shown():
    answer = AnswerText(VOCABULARY, markers=MARKERS)
    parts = answer.push(ids("<think>hm</think>yes<tool_call>{}</tool_call>!"))
    assert parts == [Part("thinking", "hm"), Part("text", "yes"), Part("tool_call", "{}"), Part("text", "!")]


def test_a_marker_in_ordinary_tokens_counts_as_well():
    answer = AnswerText(VOCABULARY, markers=MARKERS)
    shown = [part for parts in one_by_one(answer, b"a<think>b</think>c") for part in parts]
    assert shown == [Part("text", "a"), Part("thinking", "b"), Part("text", "c")]


def test_control_tokens_are_silent_unless_they_spell_a_marker():
    end, think = SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<think>"]
    assert AnswerText(VOCABULARY).push([ord("a"), end, ord("b")]) == [Part("text", "ab")]
    marked = AnswerText(VOCABULARY, markers=Markers(thinking=("<|im_end|>", "<think>")))
    assert marked.push([ord("a"), end, ord("b"), think]) == [Part("text", "a"), Part("thinking", "b")]


def test_a_closing_marker_means_nothing_outside_its_channel():
    answer = AnswerText(VOCABULARY, markers=MARKERS)
    assert answer.push(ids("a</think>b")) == [Part("text", "a</think>b")]


def test_a_prompt_that_opens_the_thinking_begins_the_answer_there():
    prompt = ids("hello<|im_start|>assistant\n<think>\n")
    assert opening_channel(VOCABULARY, prompt, MARKERS) == "thinking"
    assert opening_channel(VOCABULARY, ids("<think>x</think>"), MARKERS) == "text"
    answer = AnswerText(VOCABULARY, markers=MARKERS, channel="thinking")
    assert answer.push(ids("hm</think>ok")) == [Part("thinking", "hm"), Part("text", "ok")]
