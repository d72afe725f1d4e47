"""docs/internals/messages.md shows every kind and every field, as the code has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from docs.generate import replace_part
from docs.generators import message_tables
from erllama_host import Client
from erllama_host.protocol.envelope import MAX_BODY_BYTES, MAX_ENVELOPE_BYTES, PROTOCOL_VERSION, Envelope
from erllama_host.protocol.inference import (
    CLIENT_LOST_AFTER_S,
    INITIAL_CREDIT_TOKENS,
    MAX_AHEAD_TOKENS,
    SILENCE_BEFORE_RESUME_S,
    Infer,
)
from erllama_host.protocol.kinds import EVENT_KINDS, HOST_KINDS, LINK_KINDS, MODEL_KINDS
from tests.support.hosts import running_host

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "internals" / "messages.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("marker", "make"), [("kinds", message_tables.kinds), ("bodies", message_tables.bodies)])
def test_the_tables_are_those_of_the_code(marker, make):
    assert replace_part(PAGE, marker, make()) == PAGE, "run `python -m docs.generate`"


def test_every_kind_has_a_row():
    rows = re.findall(r"^\| `([\w.]+)` \| \[", PAGE, re.MULTILINE)
    assert set(rows) >= set(HOST_KINDS) | set(MODEL_KINDS) | set(EVENT_KINDS) | set(LINK_KINDS)


def test_every_type_that_is_named_is_described():
    named = set(re.findall(r"\]\(#([a-z]+)\)", PAGE))
    described = {heading.lower() for heading in re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)}
    assert named <= described


def test_every_field_of_a_request_is_described():
    section = PAGE.partition("### Infer\n")[2].partition("\n### ")[0]
    fields = [field.name for field in msgspec.structs.fields(Infer)]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == fields


def test_the_envelope_table_is_the_envelope():
    section = PAGE.partition("## Frames")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", section, re.MULTILINE)
    assert rows == [(str(index), field.name) for index, field in enumerate(msgspec.structs.fields(Envelope))]


def test_the_numbers_in_the_prose_are_those_of_the_code():
    assert (PROTOCOL_VERSION, MAX_ENVELOPE_BYTES, MAX_BODY_BYTES) == (1, 1024, 16 << 20)
    assert "of the protocol: 1" in PAGE and "1 024 bytes" in PAGE and "16 MiB" in PAGE
    assert (INITIAL_CREDIT_TOKENS, MAX_AHEAD_TOKENS) == (256, 1024)
    assert "(256 by default)" in PAGE and "1 024 tokens ahead" in PAGE
    assert (SILENCE_BEFORE_RESUME_S, CLIENT_LOST_AFTER_S) == (2.0, 10.0)
    assert "after 2 s without" in PAGE and "for 10 s is cancelled" in PAGE


@pytest.mark.process
def test_the_client_on_the_page_talks_to_a_host():
    """It is run as it stands, with nothing of the product in sight."""
    script = re.search(r"^```python\n(.*?)^```", PAGE.partition("## A session by hand")[2], re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^import (.+)$", script, re.MULTILINE)) == {"os, secrets", "msgpack, zmq"}
    with running_host('[models.tiny]\nbackend = "stub"\nn_ctx = 512\n') as running:
        with Client(running.paths.endpoint) as client:
            expected = client.model("tiny").complete("Once upon a time", max_tokens=32).text
        done = subprocess.run(
            [sys.executable, "-I", "-c", script],
            env={**os.environ, **running.paths.environment()},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    text, _, end = done.stdout.partition("\n ")
    assert text == expected and "'finish_reason': 'length'" in end
