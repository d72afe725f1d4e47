"""The fuzzer's own messages: every kind is attacked, and decoding any of them gives a body or a clear error."""

from erllama_host.errors import ErllamaError
from erllama_host.protocol import decode_body, decode_envelope
from erllama_host.protocol.inference import Infer
from erllama_host.protocol.kinds import HOST_KINDS, LINK_KINDS, MODEL_KINDS
from erllama_host.protocol.validate import check_infer
from tests.support.wire_cases import CaseMaker


def _body_type(kind: str) -> type:
    row = HOST_KINDS.get(kind) or MODEL_KINDS.get(kind)
    return row.body if row else LINK_KINDS[kind]


def test_ten_thousand_cases_decode_or_are_refused_clearly() -> None:
    decoded, refused, num_right = set(), set(), 0
    for case in CaseMaker(seed=1, model="victim").cases(10_000):
        try:
            decode_envelope(case.envelope)
            body = decode_body(case.kind, case.body, _body_type(case.kind))
            if isinstance(body, Infer):
                check_infer(body)
                num_right += 1
            decoded.add(case.kind)
        except ErllamaError as error:
            assert error.message
            refused.add(case.kind)
    everything = HOST_KINDS.keys() | MODEL_KINDS.keys() | LINK_KINDS.keys()
    assert refused == everything
    assert len(decoded) > len(everything) / 2
    assert num_right > 10, "requests that are odd and are run all the same"


def test_the_same_seed_makes_the_same_cases() -> None:
    assert list(CaseMaker(7, "m").cases(200)) == list(CaseMaker(7, "m").cases(200))
