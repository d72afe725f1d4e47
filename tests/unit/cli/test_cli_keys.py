"""`erllama keys`: files that a host and a client can use."""

import json

from zmq.auth import load_certificate


def test_new_list_remove(erllama, tmp_path):
    ran = erllama("keys", "new", "alice", "--role", "admin")
    secret, server = ran.out.splitlines()
    assert ran.code == 0
    assert load_certificate(secret)[1] is not None
    assert load_certificate(server)[1] is None
    listed = json.loads(erllama("keys", "list", "--json").out)["keys"]
    assert [(key["name"], key["role"]) for key in listed] == [("alice", "admin")]
    assert listed[0]["public_key"] == load_certificate(secret)[0].decode()
    assert erllama("keys", "remove", "alice").code == 0
    assert json.loads(erllama("keys", "list", "--json").out) == {"keys": []}


def test_every_file_is_closed_to_others(erllama, tmp_path):
    made = json.loads(erllama("keys", "new", "bob", "--json").out)
    assert (made["name"], made["role"]) == ("bob", "user")
    files = [path for path in (tmp_path / "home" / "keys").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_what_is_refused(erllama):
    assert erllama("keys", "new", "bob").code == 0
    assert erllama("keys", "new", "bob").code == 2
    assert erllama("keys", "new", "../bob").code == 2
    assert erllama("keys", "new", "eve", "--role", "root").code == 2
    assert erllama("keys", "remove", "eve").code == 2
