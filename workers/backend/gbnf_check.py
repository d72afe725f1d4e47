"""Refusing grammars that llama.cpp could not follow in bounded time and memory. Pure.

llama.cpp follows every way a grammar could go on at once, each as a stack of positions, and to check a token it follows every
path of the token's characters through them, also where paths meet again. Some small grammars have more ways or paths than
there is memory or time for (thirty lines of `a ::= b b`, `([a-z]+ | [a-z]+)+`), and it has no bound of its own: the process
hangs or dies. `check_gbnf` follows the same stacks and counts the same paths (`llama_grammar_advance_stack`,
`llama_grammar_reject_candidates_for_stack`) within a budget, from every rule, along the characters that keep most paths
alive; what exceeds the budget is refused.
"""

from collections.abc import Iterable

from workers.backend.gbnf import CharSet, Element, GbnfError, Grammar, RuleRef, parse_gbnf

MAX_STACKS = 512
"""Ways to go on at one point. JSON schemas have tens; an enumeration has one per value."""
MAX_STEP_WORK = 8_000
"""Stacks looked at for one character."""
MAX_WORK = 100_000
"""Stacks looked at in all: about half a second here."""
MAX_PATHS = 20_000
"""Paths of one token's characters. An unambiguous grammar has one, white space between optional parts makes a few more."""
WALK_CHARS = 16
"""Length of the texts tried: that of long tokens."""


def check_gbnf(text: str) -> None:
    """Raise GbnfError unless `text` parses and can be followed within the bounds of this module."""
    _Walker(parse_gbnf(text)).check()


_Position = tuple[int, int, int]
"""Rule, alternative, index in it."""
_Stack = tuple[_Position, ...]
_Paths = dict[_Stack, int]
"""How many paths lead to each stack."""


class _Walker:
    """Follows the stacks of a grammar within the budget."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._work = 0

    def check(self) -> None:
        """Walk from every rule: an explosion may wait behind a text that no walk from the root would find."""
        for rule in range(len(self._grammar.rules)):
            if rule not in self._grammar.tails:
                self._walk(rule)

    def _walk(self, rule: int) -> None:
        starts = [((rule, index, 0),) for index, elements in enumerate(self._grammar.rules[rule]) if elements]
        paths = dict.fromkeys(self._advance(starts, rule), 1)
        for _ in range(WALK_CHARS):
            survivors = self._most_survivors(paths)
            if not survivors:
                return
            paths = self._follow(survivors, rule)

    def _follow(self, paths: _Paths, rule: int) -> _Paths:
        """One character further; paths that meet stay as many as they are, as in llama.cpp."""
        following: _Paths = {}
        for stack, count in paths.items():
            for next_stack in self._advance([self._after_top(stack)], rule):
                following[next_stack] = following.get(next_stack, 0) + count
        if len(following) > MAX_STACKS or sum(following.values()) > MAX_PATHS:
            raise self._too_many(rule)
        return following

    def _most_survivors(self, paths: _Paths) -> _Paths:
        """The paths that accept one character, for the character that keeps most of them."""
        tops = {self._element(stack[-1]) for stack in paths if stack}
        sets = [top for top in tops if isinstance(top, CharSet)]
        best: _Paths = {}
        for code in sorted({chars.example() for chars in sets})[:16]:
            accepting = {chars for chars in sets if chars.accepts(code)}
            kept = {stack: n for stack, n in paths.items() if stack and self._element(stack[-1]) in accepting}
            best = max(best, kept, key=lambda found: sum(found.values()))
        return best

    def _too_many(self, rule: int) -> GbnfError:
        return GbnfError(f"rule {self._grammar.name_of(rule)!r} has too many ways to go on")

    def _advance(self, todo: Iterable[_Stack], rule: int) -> list[_Stack]:
        """Expand until every stack is empty or has characters on top, each once."""
        seen: set[_Stack] = set()
        ready: list[_Stack] = []
        todo = list(todo)
        budget = MAX_WORK - self._work
        while todo:
            stack = todo.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if len(seen) > MAX_STEP_WORK or len(ready) > MAX_STACKS:
                raise self._too_many(rule)
            if len(seen) > budget:
                raise GbnfError("the grammar is too large to be checked")
            element = self._element(stack[-1]) if stack else None
            if isinstance(element, RuleRef):
                below = self._after_top(stack)
                todo += [
                    (*below, (element.rule, index, 0)) if elements else below
                    for index, elements in enumerate(self._grammar.rules[element.rule])
                ]
            else:
                ready.append(stack)
        self._work += len(seen)
        return ready

    def _after_top(self, stack: _Stack) -> _Stack:
        rule, alternative, index = stack[-1]
        if index + 1 < len(self._grammar.rules[rule][alternative]):
            return (*stack[:-1], (rule, alternative, index + 1))
        return stack[:-1]

    def _element(self, position: _Position) -> Element:
        rule, alternative, index = position
        return self._grammar.rules[rule][alternative][index]
