"""Reading GBNF grammars as llama.cpp does, to say where one is wrong. Pure.

The parser mirrors llama-grammar.cpp (`parse_sequence`, `handle_repetitions`), whose own errors go to the log of the
process together with the whole text. `gbnf_machine.py` follows what is read here.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_NESTING = 1000
MAX_REPEATS = 2000
"""llama.cpp's own bound of rules that one repetition makes (MAX_REPETITION_THRESHOLD)."""
MAX_ELEMENTS = 200_000

_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


class GbnfError(ValueError):
    """The grammar does not parse, or has too many ways to go on; the message says where and why."""


@dataclass(frozen=True, slots=True)
class CharSet:
    """Characters one position accepts, by code point; `ranges` are inclusive."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def accepts(self, code: int) -> bool:
        for low, high in self.ranges:
            if low <= code <= high:
                return not self.negated
        return self.negated

    def intersects(self, low: int, high: int) -> bool:
        """Whether some code point of `[low, high]` is accepted."""
        if not self.negated:
            return any(first <= high and low <= last for first, last in self.ranges)
        # The first code point after each excluded range, and `low` itself, are the only candidates for the smallest
        # one.
        candidates = (low, *(last + 1 for _, last in self.ranges))
        return any(low <= code <= high and self.accepts(code) for code in candidates)


@dataclass(frozen=True, slots=True)
class RuleRef:
    """The expansion of a rule, by number."""

    rule: int


Element = CharSet | RuleRef
Alternative = tuple[Element, ...]


@dataclass(slots=True)
class Grammar:
    """Rules by number: each a list of alternatives. Rules made for groups and repetitions have numbers, no names."""

    rules: list[list[Alternative]] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def name_of(self, rule: int) -> str:
        return next((name for name, number in self.numbers.items() if number == rule), "?")


def parse_gbnf(text: str) -> Grammar:
    """The rules of `text`.

    Raises:
        GbnfError: it does not parse, a rule is missing or recurs on its left.
    """
    grammar = _Parser(text).parse()
    for name, number in grammar.numbers.items():
        if not grammar.rules[number]:
            raise GbnfError(f"rule {name!r} is used but not defined")
    if "root" not in grammar.numbers:
        raise GbnfError("there is no rule `root`")
    _check_left_recursion(grammar)
    return grammar


@dataclass(slots=True)
class _OpenRule:
    """A rule that is being read: the alternatives so far, and the one at hand."""

    number: int
    alternatives: list[Alternative] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)
    last_start: int = 0
    """Where the last symbol begins in `elements`: what a repetition repeats."""
    num_rules: int = 1
    """Rules that the last symbol stands for."""

    def start_symbol(self) -> None:
        self.last_start, self.num_rules = len(self.elements), 1

    def add_group(self, group: int, num_rules: int) -> None:
        """A group has ended; `num_rules` is how many rules there are by now, those inside it included."""
        self.start_symbol()
        self.num_rules = max(1, num_rules - group)
        self.elements.append(RuleRef(group))

    def end_alternative(self) -> None:
        self.alternatives.append(tuple(self.elements))
        self.elements = []
        self.start_symbol()


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._grammar = Grammar()
        self._num_elements = 0

    def parse(self) -> Grammar:
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            self._parse_rule()
        return self._grammar

    def _parse_rule(self) -> None:
        number = self._rule_number(self._take_name())
        self._skip_space(newlines=False)
        if not self._text.startswith("::=", self._at):
            raise self._error("expecting ::=")
        self._at += 3
        self._skip_space(newlines=True)
        self._parse_alternatives(number)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            raise self._error("expecting the end of the line")
        self._skip_space(newlines=True)

    def _parse_alternatives(self, number: int) -> None:
        """Read the alternatives of rule `number`; groups are open rules on a stack, so nesting costs no recursion."""
        open_rules = [_OpenRule(number)]
        while True:
            rule = open_rules[-1]
            symbol = self._peek()
            if symbol == "(":
                if len(open_rules) > MAX_NESTING:
                    raise self._error(f"groups nest deeper than {MAX_NESTING}")
                open_rules.append(_OpenRule(self._add_rule([])))
                self._at += 1
            elif symbol == "|":
                rule.end_alternative()
                self._at += 1
                self._skip_space(newlines=True)
            elif symbol == ")" and len(open_rules) > 1:
                self._end_rule(open_rules.pop())
                open_rules[-1].add_group(rule.number, len(self._grammar.rules))
                self._at += 1
            elif symbol and symbol not in ")\r\n":
                self._parse_symbol(rule, symbol)
            elif len(open_rules) > 1:
                raise self._error("expecting )")
            else:
                self._end_rule(rule)
                return
            self._skip_space(newlines=len(open_rules) > 1)

    def _end_rule(self, rule: "_OpenRule") -> None:
        rule.end_alternative()
        self._count(sum(map(len, rule.alternatives)))
        self._grammar.rules[rule.number] = rule.alternatives

    def _parse_symbol(self, rule: "_OpenRule", symbol: str) -> None:
        if symbol in "*+?{":
            low, high = self._take_repetition()
            rule.num_rules = self._repeat(rule.elements, rule.last_start, low, high, rule.num_rules)
        else:
            rule.start_symbol()
            rule.elements += self._take_symbol(symbol)

    def _take_symbol(self, symbol: str) -> list[Element]:
        if symbol == '"':
            return list(self._take_literal())
        if symbol == "[":
            return self._take_class()
        if symbol == ".":
            self._at += 1
            return [CharSet((), negated=True)]
        if symbol in "<!":
            # Where one follows a string within a token, llama.cpp allows what it then throws on, and the process ends.
            raise self._error("references to tokens are not supported, write their text as a string")
        return [RuleRef(self._rule_number(self._take_name()))]

    def _take_literal(self) -> Iterator[CharSet]:
        self._at += 1
        while self._peek() != '"':
            code = self._take_char()
            yield CharSet(((code, code),))
        self._at += 1

    def _take_class(self) -> list[Element]:
        """One character set; none for an empty one, which llama.cpp reads as if it were not there."""
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while self._peek() != "]":
            low = high = self._take_char()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._take_char()
            ranges.append((low, high))
        self._at += 1
        return [CharSet(tuple(ranges), negated)] if ranges else []

    def _take_char(self) -> int:
        character = self._peek()
        if not character:
            raise self._error("unexpected end")
        self._at += 1
        if character != "\\":
            return ord(character)
        escape = self._peek()
        self._at += 1
        if escape in _HEX_DIGITS:
            digits = self._text[self._at : self._at + _HEX_DIGITS[escape]]
            if not re.fullmatch(rf"[0-9a-fA-F]{{{_HEX_DIGITS[escape]}}}", digits):
                raise self._error(f"expecting {_HEX_DIGITS[escape]} hexadecimal digits")
            self._at += len(digits)
            return int(digits, 16)
        if escape not in _ESCAPES:
            raise self._error(f"unknown escape \\{escape}")
        return ord(_ESCAPES[escape])

    def _take_repetition(self) -> tuple[int, int | None]:
        symbol = self._peek()
        self._at += 1
        if symbol != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[symbol]
        match = re.compile(r"\s*(\d{1,9})\s*(,\s*(\d{1,9})?\s*)?\}").match(self._text, self._at)
        if match is None:
            raise self._error("expecting {n}, {n,} or {n,m}")
        self._at = match.end()
        low = int(match[1])
        high = low if match[2] is None else int(match[3]) if match[3] is not None else None
        if high is not None and high < low:
            raise self._error(f"{{{low},{high}}} allows nothing")
        return low, None if high is not None and high > MAX_REPEATS else high

    def _repeat(self, elements: list[Element], start: int, low: int, high: int | None, num_rules: int) -> int:
        """Rewrite the last symbol, as llama.cpp does: S{2,3} becomes S S S', with S' ::= S | nothing."""
        if start == len(elements):
            raise self._error("nothing to repeat before * + ? or {")
        repeats = high or low or 1
        if low > MAX_REPEATS or num_rules * repeats > MAX_REPEATS:
            raise self._error(f"repetitions make more than {MAX_REPEATS} rules")
        symbol = tuple(elements[start:])
        self._count(len(symbol) * repeats)  # before they are written out: a long literal, often, is gigabytes
        del elements[start:]
        elements += symbol * low
        optional = self._optional(symbol, None if high is None else high - low)
        if optional is not None:
            elements.append(optional)
        return num_rules * repeats

    def _optional(self, symbol: Alternative, most: int | None) -> RuleRef | None:
        if most is None:
            number = self._add_rule([])
            self._grammar.rules[number] = [(*symbol, RuleRef(number)), ()]
            return RuleRef(number)
        last = None
        for _ in range(most):
            last = RuleRef(self._add_rule([symbol if last is None else (*symbol, last), ()]))
        return last

    def _count(self, elements: int) -> None:
        self._num_elements += elements
        if self._num_elements > MAX_ELEMENTS:
            raise self._error("the grammar is too large when its repetitions are written out")

    def _rule_number(self, name: str) -> int:
        if name not in self._grammar.numbers:
            self._grammar.numbers[name] = self._add_rule([])
        return self._grammar.numbers[name]

    def _add_rule(self, alternatives: list[Alternative]) -> int:
        self._grammar.rules.append(alternatives)
        return len(self._grammar.rules) - 1

    def _take_name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self._error("expecting a name")
        self._at = match.end()
        return match[0]

    def _skip_space(self, *, newlines: bool) -> None:
        match = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*" if newlines else r"(?:[ \t]|#[^\r\n]*)*").match(
            self._text, self._at
        )
        assert match is not None
        self._at = match.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, message: str) -> GbnfError:
        line = self._text.count("\n", 0, self._at) + 1
        return GbnfError(f"line {line}: {message}, at {self._text[self._at : self._at + 20]!r}")


def _check_left_recursion(grammar: Grammar) -> None:
    """A rule that begins with itself would be expanded for ever."""
    empty = {number for number, alternatives in enumerate(grammar.rules) if () in alternatives}
    begins_with = [list(dict.fromkeys(_first_refs(alternatives, empty))) for alternatives in grammar.rules]
    done: set[int] = set()
    for root in range(len(grammar.rules)):
        # Depth first, without recursion: a chain of rules may be thousands long.
        path = [] if root in done else [root]
        on_path = set(path)
        pending = [iter(begins_with[root])]
        while path:
            rule = next(pending[-1], None)
            if rule is None:
                pending.pop()
                finished = path.pop()
                on_path.discard(finished)
                done.add(finished)
            elif rule in on_path:
                raise GbnfError(f"rule {grammar.name_of(rule)!r} recurs on its left")
            elif rule not in done:
                path.append(rule)
                on_path.add(rule)
                pending.append(iter(begins_with[rule]))


def _first_refs(alternatives: list[Alternative], empty: set[int]) -> Iterator[int]:
    """Rules that one of these may begin with. As in llama.cpp, only a rule with an empty alternative of its own counts as
    empty; recursion over other nothings is bounded where it is followed."""
    for elements in alternatives:
        for element in elements:
            if not isinstance(element, RuleRef):
                break
            yield element.rule
            if element.rule not in empty:
                break
