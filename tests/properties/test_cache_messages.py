"""Whatever bytes or values a message to the daemon carries, it is answered or refused, and the books stay right."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_daemon.catalog import Catalog, CatalogSettings
from cache_daemon.dispatch import Dispatch, Wait
from cache_daemon.entries import TierSpec
from cache_daemon.peers import Peer
from erllama_host.errors import InvalidRequest
from erllama_host.kv.reuse import Reuse
from erllama_host.protocol import cache as m
from erllama_host.protocol import decode_body, encode_body
from tests.support.rows import BLOCK, SPACE, Row

KINDS = sorted(set(m.CACHE_KINDS) - {"k.hello", "k.bye", "k.ping", "cache"})
ROW = Row(range(2 * BLOCK + 3))

numbers = st.integers(-3, 40) | st.sampled_from([2**31, 2**32, 2**48, 2**63, -(2**63)])
keys = st.sampled_from([ROW.key(BLOCK), ROW.key(2 * BLOCK), ROW.chain.root, b"", b"k" * 31, b"k" * 32])
packed = st.sampled_from([b"", b"123", ROW.packed, ROW.packed[: BLOCK * 4], ROW.packed + b"x"])
scalars = st.none() | st.booleans() | numbers | keys | packed | st.text(max_size=4) | st.sampled_from(list(Reuse))


def plausible(annotation):
    """Values that are mostly of the right type and seldom make sense."""
    info = msgspec.inspect.type_info(annotation)
    match info:
        case msgspec.inspect.IntType():
            return numbers
        case msgspec.inspect.BytesType():
            return keys | packed
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType():
            return st.sampled_from([*Reuse, "ram", "nowhere", ""])
        case msgspec.inspect.ListType(item_type=item):
            return st.lists(plausible_info(item), max_size=3)
    return scalars


def plausible_info(info):
    if isinstance(info, msgspec.inspect.StructType):
        return plausible_struct(info.cls)
    return numbers if isinstance(info, msgspec.inspect.IntType) else scalars


def plausible_struct(cls):
    fields = {field.encode_name: field for field in msgspec.structs.fields(cls)}
    values = {name: plausible(field.type) | st.just(0) for name, field in fields.items()}
    if cls.__struct_config__.array_like:
        return st.tuples(*values.values()).map(list)
    return st.fixed_dictionaries(values)


def new_dispatch():
    tiers = [TierSpec("ram", "ram", "/ram", 1 << 20), TierSpec("disk", "disk", "/disk", 1 << 20)]
    catalog = Catalog(tiers, CatalogSettings(block_tokens=BLOCK, first_id=1))
    return catalog, Dispatch(catalog), Peer(b"r", "w", "tiny", 1, None, SPACE.root, "ram")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), st.data())
def test_strange_values(kinds, data):
    catalog, dispatch, peer = new_dispatch()
    for number, kind in enumerate(kinds):
        body = data.draw(plausible_struct(m.CACHE_KINDS[kind].body), label=kind)
        try:
            decoded = decode_body(kind, encode_body(body), m.CACHE_KINDS[kind].body)
            answer = dispatch.handle(kind, peer, decoded, float(number))
        except InvalidRequest:
            continue
        if isinstance(answer, Wait):
            answer = answer.give_up(float(number))
        expected = m.CACHE_KINDS[kind].answer
        assert answer is None if expected is None else isinstance(answer, expected)
        encode_body(answer)
    catalog.worker_gone("w", 100.0)
    for stock in catalog.holdings.stocks.values():
        assert 0 <= stock.ledger.used_bytes <= stock.ledger.limit_bytes and stock.ledger.reserved_bytes == 0


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(m.CACHE_KINDS)), st.binary(max_size=60))
def test_any_bytes(kind, data):
    try:
        decode_body(kind, data, m.CACHE_KINDS[kind].body)
    except InvalidRequest as error:
        assert error.message
