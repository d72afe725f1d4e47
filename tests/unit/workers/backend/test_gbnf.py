"""Reading and bounding grammars."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_grammar

from workers.backend.gbnf import MAX_NESTING, CharSet, GbnfError, RuleRef, parse_gbnf
from workers.backend.gbnf_check import check_gbnf
from workers.backend.llama.grammar import schema_to_gbnf

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
            check_gbnf(candidate)
        except GbnfError as error:
            assert str(error)


GOOD = {
    name: getattr(llama_grammar, name) for name in ("ARITHMETIC_GBNF", "C_GBNF", "CHESS_GBNF", "JSON_GBNF", "LIST_GBNF")
} | {
    "whitespace": 'root ::= ws "a" ws "b" ws\nws ::= [ \\t\\n]*',
    "long literal": f'root ::= "{"word " * 500}"',
    "optional digits": 'root ::= "a"{0,2000}',
    "deep groups": "root ::= " + '("a" ' * 300 + ")?" * 300,
    "enumeration": "root ::= " + " | ".join(f'"value {index}"' for index in range(400)),
    "tokens": "root ::= <think> [^<]* </think>",
}


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_grammars_pass(name):
    check_gbnf(GOOD[name])


SCHEMAS = [
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20)}},
    {"type": "array", "items": {"type": "string", "maxLength": 100}, "maxItems": 20},
    {"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]},
    {"type": "string", "pattern": "^[0-9]{3}-[a-z]{1,40}$"},
    {"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
def test_grammars_of_ordinary_schemas_pass(schema):
    check_gbnf(schema_to_gbnf(json.dumps(schema)))


EXPLOSIVE = {
    "equal stars": "root ::= " + " ".join(['"a"*'] * 30),
    "many optional": "root ::= " + " ".join(['"a"?'] * 8000),
    "nested optional": 'root ::= ((("a"?){40})?){40}',
    "every way twice": "root ::= ([a-z]+ | [a-z]+)+",
    "growing": 'root ::= s\ns ::= "a" s s | "a" s | ""',
    "doubling lines": "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30)) + '\nr30 ::= "a"?\nroot ::= r0',
    "doubling search": "\n".join(f"r{i} ::= r{i + 1} | r{i + 1}" for i in range(40)) + '\nr40 ::= "a"\nroot ::= r0',
    "recursion over nothing": 'root ::= b root "x" | "y"\nb ::= c\nc ::= "" | "z"',
    "behind a long text": f'root ::= "{"x" * 100}" tail\ntail ::= ' + " ".join(["[a-z]*"] * 60),
    "wide": "root ::= " + " | ".join(['"a" root'] * 4000) + ' | "b"',
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_grammars_with_too_many_ways_are_refused_within_the_budget(name):
    started = time.process_time()
    with pytest.raises(GbnfError, match=r"too many|too large|recurs"):
        check_gbnf(EXPLOSIVE[name])
    # Seconds would do as well; without the budget it is never.
    assert time.process_time() - started < 30
