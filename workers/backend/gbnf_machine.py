"""Following a grammar byte by byte, within bounds. Pure.

Used in place of llama.cpp's own grammar sampler, which has no bounds: it follows every path of a token's characters
through every way the grammar could go on, so that short grammars make it run for hours or out of memory, and some
that it accepts make it throw through ctypes, which ends the process. All models of a host would survive that, the
model would not.

A state is the set of ways to go on, each a stack of places in the rules, plus the bytes of a character that is not complete
yet. Equal stacks are one object, and so are equal states: neither copying nor comparing costs more for a deep stack. A state
remembers where each byte leads: a machine is built as far as it is used. So a token that was seen in a state costs a
dictionary look-up per byte.
"""

from collections.abc import Iterable
from typing import TypeAlias

from workers.backend.gbnf import CharSet, Element, GbnfError, Grammar, RuleRef

MAX_WAYS = 1024
"""Ways to go on at one point. JSON schemas have tens; an enumeration has one per value."""
MAX_EXPANSIONS = 10_000
"""Alternatives looked at for one character: some 10 ms."""
MAX_WORK = 1_000_000
"""Stacks looked at between two calls of `refill`: about a second, which only a grammar that is made for it needs."""
MAX_STATES = 20_000
MAX_WAYS_KNOWN = 500_000
"""States remembered, and the ways in them together; beyond one of these all are forgotten and made again as needed."""

_UTF8_PAYLOAD_BITS = {2: 5, 3: 4, 4: 3}
_UTF8_SMALLEST = {2: 0x80, 3: 0x800, 4: 0x10000}
_SURROGATES = (0xD800, 0xDFFF)
_LAST_CODE = 0x10FFFF
_MISSING = object()


class Place:
    """A place in an alternative of a rule, on top of the places to return to: a stack, by its top."""

    __slots__ = ("alternative", "below", "element", "index", "rule")

    def __init__(self, rule: int, alternative: int, index: int, element: Element, below: "Stack") -> None:
        self.rule = rule
        self.alternative = alternative
        self.index = index
        self.element = element
        self.below = below


Stack: TypeAlias = Place | None
"""None: nothing is left to come."""


class State:
    """One point in a grammar. `following` maps a byte to the state after it, or None where the grammar ends such a
    text.
    """

    __slots__ = ("following", "is_end", "pending", "stacks")

    def __init__(self, stacks: tuple[Stack, ...], pending: bytes) -> None:
        self.stacks = stacks
        self.pending = pending
        self.is_end = not pending and None in stacks
        self.following: dict[int, State | None] = {}


class Machine:
    """The states of one grammar. Not thread-safe once it is used."""

    def __init__(self, grammar: Grammar) -> None:
        """
        Raises:
            GbnfError: the grammar has too many ways to begin.
        """
        self._rules = grammar.rules
        self._places: dict[tuple[int, int, int, Stack], Place] = {}
        self._known: dict[tuple[frozenset[Stack], bytes], State] = {}
        self._num_ways_known = 0
        self._work_left = MAX_WORK
        self.start = self._state(self._expand(self._alternatives(grammar.numbers["root"], None)), b"")

    def refill(self) -> None:
        """Grant the work of one more token."""
        self._work_left = MAX_WORK

    def step(self, state: State, byte: int) -> State | None:
        """The state after one more byte; None where the grammar does not go on so.

        Raises:
            GbnfError: there are too many ways to go on after it.
        """
        following = state.following.get(byte, _MISSING)
        if following is _MISSING:
            following = state.following[byte] = self._compute(state, byte)
        return following  # type: ignore[return-value]  # not _MISSING any more

    def _compute(self, state: State, byte: int) -> State | None:
        data = state.pending + bytes((byte,))
        length = utf8_length(data[0])
        if length == 0 or (len(data) > 1 and byte & 0xC0 != 0x80):
            return None
        if len(data) < length:
            low, high = code_range(data, length)
            tops = (stack.element for stack in state.stacks if stack is not None)
            possible = low <= high and any(isinstance(top, CharSet) and top.intersects(low, high) for top in tops)
            return self._state(state.stacks, data) if possible else None
        try:
            code = ord(data.decode())
        except UnicodeDecodeError:
            return None
        return self._consume(state.stacks, code)

    def _consume(self, stacks: tuple[Stack, ...], code: int) -> State | None:
        self._spend(len(stacks))
        kept = [self._after(stack) for stack in stacks if stack is not None and _accepts(stack, code)]
        return self._state(self._expand(kept), b"") if kept else None

    def _expand(self, stacks: Iterable[Stack]) -> tuple[Stack, ...]:
        """Expand rules until every stack is empty or has characters on top, each stack once."""
        seen = set(stacks)
        todo = list(seen)
        ready: list[Stack] = []
        looked_at = len(todo)
        while todo:
            stack = todo.pop()
            if stack is None or not isinstance(stack.element, RuleRef):
                ready.append(stack)
                continue
            # Counted before they are made: a rule may have thousands of alternatives, and many may lead to it.
            looked_at += len(self._rules[stack.element.rule])
            if len(ready) > MAX_WAYS or looked_at > MAX_EXPANSIONS:
                raise GbnfError("the grammar has too many ways to go on at one point")
            for following in self._alternatives(stack.element.rule, self._after(stack)):
                if following not in seen:
                    seen.add(following)
                    todo.append(following)
        if len(ready) > MAX_WAYS:
            raise GbnfError("the grammar has too many ways to go on at one point")
        self._spend(looked_at)
        return tuple(ready)

    def _alternatives(self, rule: int, below: Stack) -> list[Stack]:
        return [
            self._place(rule, index, 0, below) if elements else below
            for index, elements in enumerate(self._rules[rule])
        ]

    def _spend(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise GbnfError("the grammar takes too long to follow")

    def _state(self, stacks: tuple[Stack, ...], pending: bytes) -> State:
        key = (frozenset(stacks), pending)
        state = self._known.get(key)
        if state is None:
            if len(self._known) >= MAX_STATES or self._num_ways_known >= MAX_WAYS_KNOWN:
                self._forget()
            state = self._known[key] = State(stacks, pending)
            self._num_ways_known += len(stacks)
        return state

    def _forget(self) -> None:
        """Let all states go but those that somebody holds."""
        for state in self._known.values():
            state.following.clear()  # else each would keep all that was ever reached from it
        self.start.following.clear()
        self._known.clear()
        self._places.clear()
        self._num_ways_known = 0

    def _after(self, place: Place) -> Stack:
        """What is left when the element at `place` has come."""
        if place.index + 1 < len(self._rules[place.rule][place.alternative]):
            return self._place(place.rule, place.alternative, place.index + 1, place.below)
        return place.below

    def _place(self, rule: int, alternative: int, index: int, below: Stack) -> Place:
        key = (rule, alternative, index, below)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = Place(*key[:3], self._rules[rule][alternative][index], below)
        return place


def _accepts(place: Place, code: int) -> bool:
    return isinstance(place.element, CharSet) and place.element.accepts(code)


def utf8_length(first: int) -> int:
    """Bytes of a character that begins with `first`; 0 where none does."""
    if first < 0x80:
        return 1
    if 0xC2 <= first <= 0xDF:
        return 2
    if 0xE0 <= first <= 0xEF:
        return 3
    return 4 if 0xF0 <= first <= 0xF4 else 0


def code_range(data: bytes, length: int) -> tuple[int, int]:
    """First and last code point of the characters of `length` bytes that begin with `data`; first > last where none does.

    Python's decoder refuses the same: longer forms than needed, surrogates, what lies beyond Unicode.
    """
    value = data[0] & ((1 << _UTF8_PAYLOAD_BITS[length]) - 1)
    for byte in data[1:]:
        value = value << 6 | byte & 0x3F
    missing = 6 * (length - len(data))
    low, high = max(value << missing, _UTF8_SMALLEST[length]), min((value + 1 << missing) - 1, _LAST_CODE)
    if low >= _SURROGATES[0] and high <= _SURROGATES[1]:
        return 1, 0
    return low, high
