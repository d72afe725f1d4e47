"""Reading and bounding grammars."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_grammar

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import SamplingParams
from workers.backend import gbnf_machine
from workers.backend.constraint import Constraints, TokenTable
from workers.backend.gbnf import MAX_NESTING, CharSet, GbnfError, RuleRef, parse_gbnf
from workers.backend.gbnf_machine import MAX_EXPANSIONS, Machine
from workers.backend.llama.json_schema import schema_to_gbnf

QUIET = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rules_of(text):
    grammar = parse_gbnf(text)
    return {name: grammar.rules[number] for name, number in grammar.numbers.items()}


def chars(text):
    return tuple(CharSet(((ord(c), ord(c)),)) for c in text)


def test_literals_classes_and_references():
    rules = rules_of('root ::= "ab" [a-z0-9] [^x-] . | other # a comment\nother ::= "\\x41\\u00e9\\U0001F642\\n\\""\n')
    first, second = rules["root"]
    assert first[:2] == chars("ab")
    assert first[2] == CharSet(((97, 122), (48, 57)))
    assert first[3] == CharSet(((120, 120), (45, 45)), negated=True)
    assert first[4] == CharSet((), negated=True) and first[4].accepts(0x1F642)
    assert len(second) == 1 and isinstance(second[0], RuleRef)
    assert rules["other"] == [chars('Aé🙂\n"')]


def test_rules_may_span_lines_within_groups_and_after_bars():
    rules = rules_of('root ::=\n  "a" |\n  ("b"\n   "c")\n\nnext ::= "d"')
    assert len(rules["root"]) == 2 and rules["next"] == [chars("d")]


def test_repetitions_are_rewritten_as_llama_cpp_does():
    grammar = parse_gbnf('root ::= "a"{2,4} "b"* "c"? "d"{3}')
    (root,) = grammar.rules[grammar.numbers["root"]]
    a, b, c, d = (chars(letter)[0] for letter in "abcd")
    assert root[:2] == (a, a) and root[-3:] == (d, d, d) and len(root) == 8
    two_more, many, maybe = (grammar.rules[ref.rule] for ref in root if isinstance(ref, RuleRef))
    assert two_more[0][0] == a and two_more[1] == ()
    assert grammar.rules[two_more[0][1].rule] == [(a,), ()]
    assert many == [(b, root[3]), ()]
    assert maybe == [(c,), ()]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no rule `root`"),
        ('a ::= "x"', "no rule `root`"),
        ("root = 'x'", "line 1: expecting ::="),
        ('root ::= "x"\n\nb ::= )', "line 3: expecting the end of the line"),
        ('root ::= ("x"', "expecting )"),
        ('root ::= "x', "unexpected end"),
        ("root ::= [x", "unexpected end"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "\\x4"', "hexadecimal"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "x"{a}', "expecting {n}"),
        ('root ::= "x"{5,2}', "allows nothing"),
        ('root ::= "x"{2001}', "more than 2000 rules"),
        ('root ::= ("x"? "y"?){900}', "more than 2000 rules"),
        ("root ::= nope", "'nope' is used but not defined"),
        ('root ::= a\na ::= b "x" | "y"\nb ::= a "z"', "'a' recurs on its left"),
        ('root ::= e root "x" | "y"\ne ::= "z" | ""', "'root' recurs on its left"),
        ("root ::= ?x", "nothing to repeat"),
        ("root ::= <think> [a-z]", "references to tokens"),
        ('root ::= "a" !<[5]>', "references to tokens"),
        ("root ::= []*", "nothing to repeat"),
        ("root ::= &", "expecting a name"),
        ("root ::= " + "(" * (MAX_NESTING + 1), "nest deeper"),
    ],
)
def test_what_does_not_parse_is_said_where(text, complaint):
    with pytest.raises(GbnfError) as caught:
        parse_gbnf(text)
    assert complaint in str(caught.value)


@QUIET
@given(st.text(alphabet='root:=()[]{}"|*+?<>!\\ \n#.^-ab,1', max_size=60))
def test_any_text_is_either_read_or_refused(text):
    for candidate in (text, f"root ::= {text}"):
        try:
            Machine(parse_gbnf(candidate))
        except GbnfError as error:
            assert str(error)


# --- following ------------------------------------------------------------------------------------------------------


def follow(grammar, data):
    """Whether `data` is a whole text of the grammar, and how many of its bytes it follows."""
    machine = Machine(parse_gbnf(grammar))
    state = machine.start
    for index, byte in enumerate(data):
        state = machine.step(state, byte)
        if state is None:
            return False, index
    return state.is_end, len(data)


PATTERNS = {
    'root ::= "ab"* "c"': r"(ab)*c",
    'root ::= [a-b]+ | "c"{2,3}': r"[ab]+|c{2,3}",
    'root ::= ("a" | "ab") ("c" | "bc")?': r"(a|ab)(c|bc)?",
    'root ::= x x\nx ::= "a"? [bc]': r"(a?[bc]){2}",
    'root ::= ([a-b]+ | [a-b]+)* "c"?': r"([ab]+)*c?",
    'root ::= [^a]{1,} "a"': r"[^a]+a",
    'root ::= ""': r"",
}


@QUIET
@given(grammar=st.sampled_from(sorted(PATTERNS)), text=st.text("abc", max_size=8))
def test_a_grammar_accepts_what_the_same_pattern_matches(grammar, text):
    accepted, _ = follow(grammar, text.encode())
    assert accepted == (re.fullmatch(PATTERNS[grammar], text) is not None)


@QUIET
@given(st.binary(max_size=6))
def test_any_character_means_any_valid_utf8(data):
    accepted, followed = follow("root ::= .*", data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        assert not accepted and followed <= len(data)
        assert error.reason == "unexpected end of data" or followed < len(data)
    else:
        assert accepted


def test_half_a_character_is_followed_only_where_it_can_become_an_allowed_one():
    grammar = 'root ::= "é" | [漢-漣]'
    assert follow(grammar, "é".encode()) == (True, 2) and follow(grammar, "漢".encode()) == (True, 3)
    assert follow(grammar, "é".encode()[:1]) == (False, 1)
    assert follow(grammar, "ê".encode()) == (False, 1) and follow(grammar, "字".encode()) == (False, 0)
    assert follow('root ::= "a"', b"\xe0") == (False, 0), "no character of three bytes is an a"


def test_recursion_is_followed():
    grammar = 'root ::= "(" root ")" | ""'
    assert follow(grammar, b"(" * 200 + b")" * 200) == (True, 400)
    assert follow(grammar, b"(()")[0] is False


ORDINARY = {
    name: getattr(llama_grammar, name) for name in ("ARITHMETIC_GBNF", "C_GBNF", "CHESS_GBNF", "JSON_GBNF", "LIST_GBNF")
} | {
    "long literal": f'root ::= "{"word " * 500}"',
    "optional digits": 'root ::= "a"{0,2000}',
    "deep groups": "root ::= " + '("a" ' * 300 + ")?" * 300,
    "enumeration": "root ::= " + " | ".join(f'"value {index}"' for index in range(900)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_grammars_can_be_begun(name):
    may_be_empty = name in ("C_GBNF", "optional digits", "deep groups")
    assert Machine(parse_gbnf(ORDINARY[name])).start.is_end is may_be_empty


def test_json_is_followed_and_what_is_none_is_not():
    value = {"a": [1, -2.5e3, True, None], "é漢": {"text": 'quote " and \\ and \n', "empty": []}}
    text = json.dumps(value, ensure_ascii=False).encode()
    assert follow(llama_grammar.JSON_GBNF, text) == (True, len(text))
    for broken in (b"{a", b'{"a": 01', b'{"a": [1,]', b'{"a": "\n"'):
        assert follow(llama_grammar.JSON_GBNF, broken)[1] < len(broken)


EXPLOSIVE = {
    "equal stars": "root ::= " + " ".join(['"a"*'] * 2000),
    "many optional": "root ::= " + " ".join(['"a"?'] * 8000),
    "nested optional": 'root ::= ((("a"?){40})?){40}',
    "doubling lines": "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"?\nroot ::= r0',
    "recursion over nothing": 'root ::= b root "x" | "y"\nb ::= c\nc ::= "" | "z"',
    "three of itself": 'root ::= s\ns ::= "a" s s s | "a" s s | "a"',
    "wide": "root ::= " + " | ".join(['"a" root'] * 4000) + ' | "b"',
    "behind a text": f'root ::= "{"a" * 30}" tail\ntail ::= ' + " ".join(['"a"*'] * 2000),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_grammars_with_too_many_ways_are_refused_within_bounds(name):
    with pytest.raises(GbnfError, match=r"too many|too long|recurs"):
        follow(EXPLOSIVE[name], b"a" * 64)


def test_the_work_for_one_token_is_bounded_and_granted_anew():
    machine = Machine(parse_gbnf("root ::= " + " | ".join(f'"{index:04}"' for index in range(1000))))
    state = machine.start
    with pytest.raises(GbnfError, match="too long"):
        for byte in range(256):
            for _ in range(10):
                state.following.clear()
                machine.step(state, byte % 128)
    machine.refill()
    assert machine.step(state, ord("0")) is not None


def test_many_ways_to_one_rule_do_not_multiply_its_alternatives(monkeypatch):
    grammar = parse_gbnf("root ::= " + "|".join(["b"] * 5000) + "\nb ::= " + "|".join(["c"] * 5000) + '\nc ::= "x"')
    looked_at = []
    place = Machine._place
    monkeypatch.setattr(Machine, "_place", lambda machine, *where: looked_at.append(1) or place(machine, *where))
    with pytest.raises(GbnfError, match="too many ways"):
        Machine(grammar)
    assert len(looked_at) <= 2 * MAX_EXPANSIONS


def peak_mib(work):
    """Most memory that `work` had at a time."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / (1 << 20)
    finally:
        tracemalloc.stop()


def test_a_long_text_is_not_repeated_before_it_is_found_too_large():
    def parse():
        with pytest.raises(GbnfError, match="too large"):
            parse_gbnf(f'root ::= "{"a" * 20_000}"{{0,2000}}')

    assert peak_mib(parse) < 50  # written out: 300 MiB


def test_deep_groups_do_not_make_every_way_as_large_as_they_are_deep():
    deep = parse_gbnf("root ::= " + "(" * 900 + ' "x" ([a-z] [a-z]?){0,300} ' + '"y")' * 900)

    def run():
        machine = Machine(deep)
        state = machine.start
        for byte in b"x" + b"a" * 200:
            state = machine.step(state, byte)
        assert len(state.stacks) > 200

    assert peak_mib(run) < 20  # a stack of 900 for every way in every state: 150 MiB


@pytest.mark.parametrize("bound", ["MAX_STATES", "MAX_WAYS_KNOWN"])
def test_states_that_are_forgotten_are_gone_and_made_again(monkeypatch, bound):
    monkeypatch.setattr(gbnf_machine, bound, 50)
    machine = Machine(parse_gbnf('root ::= "(" root ")" | ""'))
    for _ in range(2):
        state = machine.start
        for byte in b"(" * 500 + b")" * 500:
            state = machine.step(state, byte)
        assert state.is_end
    assert len(reachable(machine)) <= 2 * 50


def reachable(machine):
    """All states that a machine keeps."""
    found, todo = set(), [machine.start, *machine._known.values()]
    while todo:
        state = todo.pop()
        if state is not None and state not in found:
            found.add(state)
            todo += state.following.values()
    return found


def test_equal_states_are_one():
    machine = Machine(parse_gbnf("root ::= [a-z]*"))
    once = machine.step(machine.start, ord("a"))
    assert machine.step(once, ord("q")) is once


# --- tokens ---------------------------------------------------------------------------------------------------------


PIECES = [b"", b"a", b"ab", b"abc", b"b", b"c", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"ab", b"\xff"]
END = 0


def constraint(grammar):
    table = TokenTable(PIECES, frozenset([END]))
    return Constraints(lambda: table, str).make(SamplingParams(grammar=grammar))


@pytest.mark.parametrize(
    "grammar", ['root ::= "ab" [a-cé]*', 'root ::= "é" "a"?', 'root ::= "abc" | "a" "x"', "root ::= .+"]
)
def test_the_mask_says_the_same_as_asking_for_each_token(grammar):
    place = constraint(grammar)
    for _ in range(3):
        mask = place.mask()
        assert mask.tolist() == [place.allows(token) for token in range(len(PIECES))]
        place.accept(int(np.flatnonzero(mask)[-1]))


def test_characters_may_be_split_over_tokens():
    place = constraint('root ::= "é"')
    for half in (7, 8):
        assert place.allows(half) and not place.allows(END)
        place.accept(half)
    assert place.mask().tolist() == [token == END for token in range(len(PIECES))]
    place.accept(END)
    assert place.allows(END)


def test_what_is_not_allowed_is_refused_by_field():
    place = constraint('root ::= "b"')
    with pytest.raises(InvalidRequest, match="does not follow") as caught:
        place.accept(1)
    assert caught.value.details["field"] == "grammar"
    with pytest.raises(InvalidRequest, match="no token"):
        constraint('root ::= "x"').mask()


def test_machines_are_shared_and_places_are_not():
    table = TokenTable(PIECES, frozenset([END]))
    tables = []
    constraints = Constraints(lambda: tables.append(table) or table, str)
    params = SamplingParams(grammar='root ::= "ab" "c"')
    constraints.check(params)
    assert len(tables) == 1, "so that the engine need not make it"
    first, second = constraints.make(params), constraints.make(params)
    first.accept(2)
    assert first.allows(5) and not second.allows(5) and second.allows(2)
    assert len(tables) == 1
    assert constraints.make(SamplingParams()) is None


SCHEMAS = [
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20)}},
    {"type": "array", "items": {"type": "string", "maxLength": 100}, "maxItems": 20},
    {"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]},
    {"type": "string", "pattern": "^[0-9]{3}-[a-z]{1,40}$"},
    {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_grammars_of_ordinary_schemas_can_be_begun(schema):
    assert not Machine(parse_gbnf(schema_to_gbnf(json.dumps(schema)))).start.is_end


def test_a_recursive_schema_is_followed():
    data = json.dumps({"next": {"next": {}}}).encode()
    assert follow(schema_to_gbnf(json.dumps(SCHEMAS[-1])), data)[1] == len(data)
