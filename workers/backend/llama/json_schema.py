"""From a JSON schema to a GBNF grammar: llama-cpp-python's converter, bounded before it spells anything out. Pure."""

import json
import re
from typing import Any

from llama_cpp.llama_grammar import json_schema_to_gbnf

from erllama_host.errors import InvalidRequest

MAX_SCHEMA_NESTING = 64
MAX_SCHEMA_REPEAT = 1_000
"""Bound of each minItems, maxLength and the like."""

_COUNT_KEYS = frozenset(("minItems", "maxItems", "minLength", "maxLength"))
_REPEAT = re.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")


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
