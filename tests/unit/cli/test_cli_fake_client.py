"""The fake client has the methods of the real one, with the same arguments: what passes with it can be called."""

import inspect

import pytest

from erllama_host.client import Client, Model, Stream
from tests.support.fake_client import FakeClient, FakeModel, FakeStream

OWN = {"find", "stream"}
PAIRS = [
    (real, fake, name)
    for real, fake in ((Client, FakeClient), (Model, FakeModel), (Stream, FakeStream))
    for name, member in vars(fake).items()
    if inspect.isfunction(member) and not name.startswith("_") and name not in OWN
]


@pytest.mark.parametrize(("real", "fake", "name"), PAIRS, ids=[f"{real.__name__}.{name}" for real, _, name in PAIRS])
def test_the_real_one_takes_what_the_fake_takes(real, fake, name):
    ours, theirs = inspect.signature(getattr(fake, name)), inspect.signature(getattr(real, name))
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in theirs.parameters.values())
    positions = [
        parameter.name for parameter in theirs.parameters.values() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    for index, (parameter_name, parameter) in enumerate(ours.parameters.items()):
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter_name in theirs.parameters or takes_any, parameter_name
        else:
            assert index < len(positions), parameter_name
