"""Hostile messages for every kind on the wire: wrong bytes, wrong structure, wrong values. Deterministic for a seed.

The bodies are derived from the message types themselves, so a kind added to `kinds.py` is attacked without a line here.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec
from msgspec import inspect as shapes

from erllama_host.protocol.envelope import PROTOCOL_VERSION
from erllama_host.protocol.kinds import HOST_KINDS, LINK_KINDS, MODEL_KINDS

ODD_INTEGERS = (0, 1, -1, 255, 2**31 - 1, 2**31, 2**32, -(2**31), 2**63 - 1, -(2**63))
ODD_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e300, -1e300, float("inf"), float("-inf"), float("nan"))
ODD_TEXTS = ("", "a", "../../etc/passwd", "\x00", "{{ 1/0 }}", "é" * 50, "x" * 3000, "😀", "%s%n", "root ::= root")
ODD_BYTES = (b"", b"\x00", b"\xff" * 4, b"abc", b"\xff" * 32, b"\x01\x00\x00\x00" * 40)
# Kinds that a well-formed message of would end what the fuzzer talks to.
ENDS_THE_TARGET = frozenset({"drain", "unload", "restart"})


@dataclass(frozen=True)
class Case:
    """One hostile message: its two frames, and which kind it poses as."""

    kind: str
    envelope: bytes
    body: bytes
    ref: str


class CaseMaker:
    """Makes cases; `model` is the id of a model that exists."""

    def __init__(self, seed: int, model: str) -> None:
        self._random = random.Random(seed)
        self._model = model
        self._kinds = sorted(HOST_KINDS.keys() | MODEL_KINDS.keys() | LINK_KINDS.keys())

    def cases(self, count: int) -> Iterator[Case]:
        """`count` cases, a third each with wrong bytes, wrong structure and odd values."""
        for number in range(count):
            kind = self._kinds[number % len(self._kinds)]
            yield self._case(kind, ("bytes", "structure", "values")[number // len(self._kinds) % 3])

    def _case(self, kind: str, manner: str) -> Case:
        model = "" if kind in HOST_KINDS else self._pick([self._model, self._model, "nosuch", "", "UPPER", "a/b"])
        ref = f"{model or '@host'}/{self._random.getrandbits(128):032x}"
        fields: list[Any] = [PROTOCOL_VERSION, kind, ref, model, self._pick([0, 1, 500, 2**31]), b""]
        if manner == "bytes" and self._random.random() < 0.3:
            fields[self._random.randrange(len(fields))] = self._anything(2)
        body = self._bytes() if manner == "bytes" else _pack(self._structure(kind, odd_values_only=manner == "values"))
        if kind in ENDS_THE_TARGET:
            body = b"\xc1" + body
        return Case(kind, _pack(fields), body, ref)

    def _structure(self, kind: str, *, odd_values_only: bool) -> Any:
        row = HOST_KINDS.get(kind) or MODEL_KINDS.get(kind)
        body_type = row.body if row is not None else LINK_KINDS[kind]
        value = self._value_of(shapes.type_info(body_type), 0)
        if odd_values_only or not isinstance(value, dict):
            return value
        mutation = self._pick(["drop", "rename", "retype", "extra", "whole"])
        if mutation == "whole" or not value:
            return self._anything(3)
        key = self._pick(sorted(value))
        if mutation == "drop":
            del value[key]
        elif mutation == "rename":
            value[key + "x"] = value.pop(key)
        elif mutation == "retype":
            value[key] = self._anything(3)
        else:
            value["surplus"] = self._anything(3)
        return value

    def _value_of(self, shape: shapes.Type, depth: int) -> Any:
        """A value of the type, with odd contents."""
        match shape:
            case shapes.StructType(cls=cls):
                chosen = [field for field in shape.fields if field.required or self._random.random() < 0.5]
                values = {field.encode_name: self._value_of(field.type, depth + 1) for field in chosen}
                if issubclass(cls, msgspec.Struct) and cls.__struct_config__.array_like:
                    return [self._value_of(field.type, depth + 1) for field in shape.fields]
                return values
            case shapes.UnionType():
                return self._value_of(self._pick(list(shape.types)), depth)
            case shapes.ListType():
                return [self._value_of(shape.item_type, depth + 1) for _ in range(self._random.randrange(4))]
            case shapes.TupleType():
                return [self._value_of(item, depth + 1) for item in shape.item_types]
            case shapes.DictType():
                return {
                    self._pick(ODD_TEXTS): self._value_of(shape.value_type, depth + 1)
                    for _ in range(self._random.randrange(4))
                }
            case shapes.BoolType():
                return self._random.random() < 0.5
            case shapes.IntType():
                return self._pick(ODD_INTEGERS)
            case shapes.FloatType():
                return self._pick(ODD_FLOATS)
            case shapes.StrType():
                return self._pick(ODD_TEXTS)
            case shapes.BytesType():
                return self._pick(ODD_BYTES)
            case shapes.NoneType():
                return None
            case _:
                return self._anything(3 - depth)

    def _anything(self, depth: int) -> Any:
        """Any MessagePack value."""
        kind = self._random.randrange(8 if depth > 0 else 6)
        if kind == 6:
            return [self._anything(depth - 1) for _ in range(self._random.randrange(5))]
        if kind == 7:
            return {self._pick(ODD_TEXTS): self._anything(depth - 1) for _ in range(self._random.randrange(4))}
        return self._pick((ODD_INTEGERS, ODD_FLOATS, ODD_TEXTS, ODD_BYTES, (None,), (True, False))[kind])

    def _bytes(self) -> bytes:
        return self._pick(
            [
                self._random.randbytes(self._random.randrange(64)),
                b"\x91" * self._random.randrange(2000),
                b"\xdf\xff\xff\xff\xff" + self._random.randbytes(8),
                b"\xc6\xff\xff\xff\xff" + self._random.randbytes(8),
                _pack(self._anything(4))[: self._random.randrange(1, 50)],
            ]
        )

    def _pick(self, choices: Any) -> Any:
        return choices[self._random.randrange(len(choices))]


def _pack(value: Any) -> bytes:
    return msgpack.packb(value, use_bin_type=True)
