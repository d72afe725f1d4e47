"""Grammars: GBNF and JSON schemas, bounded before llama.cpp sees them, compiled once and cloned per request.

llama.cpp parses by recursion and expands repetitions, and it runs in the worker: a hostile grammar could exhaust
stack or memory and take the model down. So nesting, size and repetitions are bounded here; within the bounds the
worst grammar that was found compiles in well under a second (tests/models/test_backend_sampling.py has it).
"""

import json
import re
from collections import OrderedDict
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import SamplingParams
from workers.backend.llama.library import lib

MAX_GRAMMAR_CHARS = 64 << 10
MAX_NESTING = 64
MAX_REPEATS = 10_000
"""Sum of the counts of all `{n}` and `{n,m}` of a grammar."""
MAX_SCHEMA_REPEAT = 1_000
"""Bound of each minItems, maxLength and the like."""
MAX_CACHED = 32

# Text that is no structure: strings, character classes, comments.
_OPAQUE = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
_COUNT_KEYS = frozenset(("minItems", "maxItems", "minLength", "maxLength"))


class Grammars:
    """Compiled grammars of one model's vocabulary, the least recently used leaving first. Engine thread only."""

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def make(self, params: SamplingParams) -> Any | None:
        """A grammar sampler of its own state for `params`, or None where they name no grammar.

        Raises:
            InvalidRequest: it does not parse, or is out of bounds; names the field.
        """
        field, text = ("json_schema", params.json_schema) if params.json_schema else ("grammar", params.grammar)
        if not text:
            return None
        key = (field, text)
        if key not in self._compiled:
            self._compiled[key] = self._compile(schema_to_gbnf(text) if field == "json_schema" else text, field)
            if len(self._compiled) > MAX_CACHED:
                _, oldest = self._compiled.popitem(last=False)
                lib.llama_sampler_free(oldest)
        self._compiled.move_to_end(key)
        return lib.llama_sampler_clone(self._compiled[key])

    def close(self) -> None:
        while self._compiled:
            lib.llama_sampler_free(self._compiled.popitem()[1])

    def _compile(self, text: str, field: str) -> Any:
        check_gbnf(text, field)
        native = lib.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not native:
            raise InvalidRequest(
                f"{field} does not parse as a grammar with a rule `root` (where exactly is in the model's log)",
                field=field,
            )
        return native


def check_gbnf(text: str, field: str) -> None:
    """Bound what compiling `text` can cost. Pure.

    Raises:
        InvalidRequest: names `field` and the bound.
    """
    if "\0" in text:
        raise InvalidRequest(f"{field} contains a NUL character", field=field)
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(f"{field} is larger than {MAX_GRAMMAR_CHARS} characters", field=field)
    structure = _OPAQUE.sub(" ", text)
    depth = deepest = 0
    for character in structure:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise InvalidRequest(f"{field} nests deeper than {MAX_NESTING} groups", field=field)
    repeats = sum(max(int(low), int(high or 0)) for low, high in _REPEAT.findall(structure))
    if repeats > MAX_REPEATS:
        raise InvalidRequest(f"{field} repeats more than {MAX_REPEATS} times in all", field=field)


def schema_to_gbnf(text: str) -> str:
    """The grammar of a JSON schema. Pure; references to other documents are refused, nothing is fetched.

    Raises:
        InvalidRequest: not JSON, out of bounds, or a schema that cannot be a grammar.
    """
    try:
        schema = json.loads(text)
        _check_schema(schema, 0)
        return str(json_schema_to_gbnf(text))
    except InvalidRequest:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError) as error:
        # The converter has no error type of its own: whatever it stumbles over is the schema's fault.
        reason = str(error) or type(error).__name__
        raise InvalidRequest(f"json_schema cannot be made a grammar: {reason[:200]}", field="json_schema") from error


def _check_schema(node: Any, depth: int) -> None:
    if depth > MAX_NESTING:
        raise InvalidRequest(f"json_schema nests deeper than {MAX_NESTING}", field="json_schema")
    if isinstance(node, list):
        for item in node:
            _check_schema(item, depth + 1)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in _COUNT_KEYS and isinstance(value, int) and value > MAX_SCHEMA_REPEAT:
                raise InvalidRequest(f"json_schema: {key} is greater than {MAX_SCHEMA_REPEAT}", field="json_schema")
            if key == "pattern" and isinstance(value, str):
                _check_pattern(value)
            if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
                raise InvalidRequest(f"json_schema: $ref {value!r} is not within the schema", field="json_schema")
            _check_schema(value, depth + 1)


def _check_pattern(pattern: str) -> None:
    """The converter spells repetitions out, nested ones multiplied, before anything can be measured."""
    product = 1
    for low, high in _REPEAT.findall(pattern):
        product *= max(int(low), int(high or 0), 1)
        if product > MAX_SCHEMA_REPEAT:
            raise InvalidRequest(
                f"json_schema: a pattern repeats more than {MAX_SCHEMA_REPEAT} times", field="json_schema"
            )
