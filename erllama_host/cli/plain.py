"""Values of the library as plain data for `--json`. Pure.

Every field is there, defaults included, so that the schema in docs/guides/operating.md holds for every answer. Bytes are hex.
"""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import msgspec


def plain(value: Any) -> Any:
    """`value` as dicts, lists, texts, numbers, booleans and None."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, PurePath):
        return str(value)
    return value
