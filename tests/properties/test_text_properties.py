"""What holds for every answer: the text is that of the ids, cut at the first stop, however the ids were grouped."""

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.backend.stub.vocabulary import SPECIAL_IDS, StubVocabulary
from workers.text import AnswerText, Markers

VOCABULARY = StubVocabulary()
MARKERS = Markers(thinking=("<think>", "</think>"), tool_call=("<c>", "</c>"))
TOKENS = st.lists(
    st.one_of(st.sampled_from(list(b"ab<>/tc")), st.integers(0, 255), st.just(SPECIAL_IDS["<think>"])), max_size=60
)
STOPS = st.lists(st.text("abct<é", min_size=1, max_size=4), max_size=4)


def cut(data, tokens):
    """A random grouping of the tokens."""
    groups, rest = [], list(tokens)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        groups.append(rest[:size])
        rest = rest[size:]
    return groups


def run(answer, groups):
    parts = [part for group in groups for part in answer.push(group)]
    return parts + answer.finish()


def joined(parts):
    """Text by channel run, neighbours merged: what a client that appends would have."""
    runs = []
    for part in parts:
        if runs and runs[-1][0] == part.channel:
            runs[-1] = (part.channel, runs[-1][1] + part.text)
        else:
            runs.append((part.channel, part.text))
    return runs


def first_stop(text, stops):
    """Cut where the first stop string is complete, at its beginning: by the definition, not by the implementation."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=150, deadline=None)
@given(tokens=TOKENS, stops=STOPS, data=st.data())
def test_the_text_is_the_decoded_text_cut_at_the_first_stop(tokens, stops, data):
    answer = AnswerText(VOCABULARY, stop=stops)
    parts = run(answer, cut(data, tokens))
    whole = b"".join(map(VOCABULARY.piece, tokens)).decode(errors="replace")
    expected, stopped = first_stop(whole, stops)
    assert "".join(part.text for part in parts) == expected
    assert answer.stop_found is stopped
    assert all(part.text for part in parts)


@settings(max_examples=150, deadline=None)
@given(tokens=TOKENS, stops=STOPS, data=st.data())
def test_grouping_changes_nothing(tokens, stops, data):
    one = run(AnswerText(VOCABULARY, stop=stops, markers=MARKERS), [[token] for token in tokens])
    other = run(AnswerText(VOCABULARY, stop=stops, markers=MARKERS), cut(data, tokens))
    assert joined(one) == joined(other)


@settings(max_examples=100, deadline=None)
@given(tokens=TOKENS, stops=STOPS, data=st.data())
def test_a_resumed_answer_goes_on_where_it_was_cut(tokens, stops, data):
    at = data.draw(st.integers(0, len(tokens)))
    first = AnswerText(VOCABULARY, stop=stops, markers=MARKERS)
    before = [part for token in tokens[:at] for part in first.push([token])]
    second = AnswerText(VOCABULARY, stop=stops, markers=MARKERS)
    second.push(tokens[:at])
    after = run(second, [tokens[at:]])
    whole = run(AnswerText(VOCABULARY, stop=stops, markers=MARKERS), [tokens])
    assert joined(before + after) == joined(whole)
