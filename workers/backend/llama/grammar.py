"""Grammars: GBNF and JSON schemas, bounded before llama.cpp sees them, compiled once and cloned per request.

llama.cpp has no bounds of its own and runs in the worker, so a hostile grammar could take the model down. Grammars are
parsed and followed within a budget before llama.cpp sees them (`gbnf_check.py`), which is also where good messages
come from. That costs milliseconds to half a second, so it may be done ahead, by any thread (`prepare`), and its
outcome is remembered.
"""

import json
import re
import threading
from collections import OrderedDict
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from erllama_host.errors import InvalidRequest
from erllama_host.protocol.inference import SamplingParams
from workers.backend.gbnf import GbnfError
from workers.backend.gbnf_check import check_gbnf
from workers.backend.llama.library import lib

MAX_GRAMMAR_CHARS = 64 << 10
MAX_SCHEMA_NESTING = 64
MAX_SCHEMA_REPEAT = 1_000
"""Bound of each minItems, maxLength and the like."""
MAX_CACHED = 32

_COUNT_KEYS = frozenset(("minItems", "maxItems", "minLength", "maxLength"))
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")

_Source = tuple[str, str]
"""Field (`grammar` or `json_schema`) and its text."""


def source_of(params: SamplingParams) -> _Source | None:
    """The grammar that `params` ask for, if any."""
    if params.json_schema:
        return "json_schema", params.json_schema
    return ("grammar", params.grammar) if params.grammar else None


class PreparedGrammars:
    """Checked grammar texts, the least recently used leaving first. Thread-safe: the lock guards the table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: OrderedDict[_Source, str] = OrderedDict()

    def prepare(self, source: _Source) -> str:
        """The GBNF of `source`, checked.

        Raises:
            InvalidRequest: it does not parse, or is out of bounds; names the field.
        """
        with self._lock:
            known = self._texts.get(source)
        if known is None:
            known = _checked_gbnf(*source)
        with self._lock:
            self._texts[source] = known
            self._texts.move_to_end(source)
            if len(self._texts) > MAX_CACHED:
                self._texts.popitem(last=False)
        return known


def _checked_gbnf(field: str, text: str) -> str:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(f"{field} is larger than {MAX_GRAMMAR_CHARS} characters", field=field)
    if "\0" in text:
        raise InvalidRequest(f"{field} contains a NUL character", field=field)
    grammar = schema_to_gbnf(text) if field == "json_schema" else text
    try:
        check_gbnf(grammar)
    except GbnfError as error:
        raise InvalidRequest(f"{field} cannot be used: {error}", field=field) from error
    return grammar


class Grammars:
    """Compiled grammars of one model's vocabulary, the least recently used leaving first. Engine thread only."""

    def __init__(self, vocab: Any, prepared: PreparedGrammars) -> None:
        self._vocab = vocab
        self._prepared = prepared
        self._compiled: OrderedDict[_Source, Any] = OrderedDict()

    def make(self, params: SamplingParams) -> Any | None:
        """A grammar sampler of its own state for `params`, or None where they name no grammar.

        Raises:
            InvalidRequest: as `PreparedGrammars.prepare`, or this vocabulary lacks a token the grammar names.
        """
        source = source_of(params)
        if source is None:
            return None
        if source not in self._compiled:
            self._compiled[source] = self._compile(source)
            if len(self._compiled) > MAX_CACHED:
                lib.llama_sampler_free(self._compiled.popitem(last=False)[1])
        self._compiled.move_to_end(source)
        return lib.llama_sampler_clone(self._compiled[source])

    def close(self) -> None:
        while self._compiled:
            lib.llama_sampler_free(self._compiled.popitem()[1])

    def _compile(self, source: _Source) -> Any:
        text = self._prepared.prepare(source)
        native = lib.llama_sampler_init_grammar(self._vocab, text.encode(errors="replace"), b"root")
        if not native:
            field = source[0]
            raise InvalidRequest(f"llama.cpp cannot use this {field}; the model's log says why", field=field)
        return native


def schema_to_gbnf(text: str) -> str:
    """The grammar of a JSON schema. Pure; references to other documents are refused, nothing is fetched.

    Raises:
        InvalidRequest: not JSON, out of bounds, or a schema that cannot be a grammar.
    """
    try:
        schema = json.loads(text)
        _check_schema(schema, 0)
        return str(json_schema_to_gbnf(json.dumps(_without_root_ref(schema))))
    except InvalidRequest:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, RecursionError) as error:
        # The converter has no error type of its own: whatever it stumbles over is the schema's fault.
        reason = str(error) or type(error).__name__
        raise InvalidRequest(f"json_schema cannot be made a grammar: {reason[:200]}", field="json_schema") from error


def _without_root_ref(schema: Any) -> Any:
    """The schema with a reference at its root replaced by what it names: the converter looks no further past one, and
    recursive schemas have it there."""
    ref = schema.get("$ref") if isinstance(schema, dict) else None
    if ref is None:
        return schema
    target = schema
    for part in ref.removeprefix("#").strip("/").split("/"):
        target = target[part]
    return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}


def _check_schema(node: Any, depth: int) -> None:
    if depth > MAX_SCHEMA_NESTING:
        raise InvalidRequest(f"json_schema nests deeper than {MAX_SCHEMA_NESTING}", field="json_schema")
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
