"""Hostile messages for every kind on the wire: wrong bytes, wrong structure, wrong values, and right but for a value or two.

The bodies are derived from the message types themselves, so a kind added to `kinds.py` is attacked without a line here. The same
cases for the same seed.
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
MANNERS = ("bytes", "structure", "values", "nearly")
STEERS_A_STREAM = frozenset({"infer", "resume", "credit", "cancel"})
ENDS_THE_TARGET = frozenset({"drain", "unload", "restart"})


def right_body(kind: str, model: str) -> dict[str, Any]:
    """A body of `kind` that is carried out, where that does not end or multiply what is attacked."""
    text, tokens = "does it hold?", b"".join(code.to_bytes(4, "little") for code in b"hello")
    bodies: dict[str, dict[str, Any]] = {
        "infer": {"text": text, "max_tokens": 3},
        "load_model": {"model_id": model, "config": {"backend": "stub"}},
        "model_info": {"model_id": model},
        "cache": {"op": "stats", "arguments": {}},
        "tokenize": {"text": text},
        "detokenize": {"tokens": tokens},
        "apply_chat_template": {"chat": {"messages": [{"role": "user", "content": text}]}},
        "embed": {"texts": [text]},
        "load_adapter": {"path": "/nowhere.gguf"},
        "unload_adapter": {"handle": "none"},
        "set_adapter_scale": {"handle": "none", "scale": 1.0},
        "cached_prefix_len": {"tokens": tokens},
        "end_session": {"session_id": "a"},
        "fork": {"session_id": "a"},
        "verify": {"tokens": tokens, "draft": tokens},
        "draft": {"tokens": tokens, "n": 2},
    }
    return bodies.get(kind, {})


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
        self._few_fields = False
        self._last_stream = f"{model}/{0:032x}"
        self._kinds = sorted(HOST_KINDS.keys() | MODEL_KINDS.keys() | LINK_KINDS.keys())

    def cases(self, count: int) -> Iterator[Case]:
        """`count` cases, as many of each manner."""
        for number in range(count):
            kind = self._kinds[number % len(self._kinds)]
            yield self._case(kind, MANNERS[number // len(self._kinds) % len(MANNERS)])

    def _case(self, kind: str, manner: str) -> Case:
        model = "" if kind in HOST_KINDS else self._pick([self._model, self._model, "nosuch", "", "UPPER", "a/b"])
        ref = f"{model or '@host'}/{self._random.getrandbits(128):032x}"
        fields: list[Any] = [PROTOCOL_VERSION, kind, ref, model, self._pick([0, 1, 500, 2**31]), b""]
        if manner == "bytes" and self._random.random() < 0.3:
            fields[self._random.randrange(len(fields))] = self._anything(2)
        if manner == "nearly":
            ref = fields[2] = self._stream_or(kind, f"{model or '@host'}/{self._random.getrandbits(128):032x}")
            body = _pack(self._nearly_right(kind))
        elif manner == "bytes":
            body = self._bytes()
        else:
            body = _pack(self._structure(kind, odd_values_only=manner == "values"))
        if kind in ENDS_THE_TARGET:
            body = b"\xc1" + body
        return Case(kind, _pack(fields), body, ref)

    def _stream_or(self, kind: str, ref: str) -> str:
        """A ref: often that of the last stream, so that it is steered, resumed and sent again in every order."""
        if kind in STEERS_A_STREAM and self._random.random() < 0.6:
            return self._last_stream
        if kind == "infer" and ref.startswith(f"{self._model}/"):
            self._last_stream = ref
        return ref

    def _nearly_right(self, kind: str) -> Any:
        """A right body, but for one or two fields; in a structure within it, but for one or two of its own."""
        row = HOST_KINDS.get(kind) or MODEL_KINDS.get(kind)
        shape = shapes.type_info(row.body if row is not None else LINK_KINDS[kind])
        body = right_body(kind, self._model)
        # Every other name would be one more model.
        open_fields = [each for each in getattr(shape, "fields", ()) if each.encode_name not in ("model_id", "peer")]
        self._few_fields = True
        for field in self._random.sample(open_fields, min(len(open_fields), self._random.randrange(3))):
            body[field.encode_name] = self._value_of(field.type, 1)
        self._few_fields = False
        return body

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
                share = 2 / len(shape.fields) if self._few_fields and shape.fields else 0.5
                chosen = [field for field in shape.fields if field.required or self._random.random() < share]
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
