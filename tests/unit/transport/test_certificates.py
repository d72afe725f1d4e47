"""Key files: what is refused, and that each complaint names the file and the way out."""

import pytest
import zmq

from erllama_host.config import Paths, parse_config
from erllama_host.errors import ConfigError
from erllama_host.transport import curve
from erllama_host.transport.certificates import read_key_pair, read_public_key
from erllama_host.transport.client_link import CurveFiles, ZmqLink

REMEDY = "make another"


@pytest.fixture
def made(tmp_path):
    return curve.new_key(tmp_path / "keys", "ann", "user")


def link(key_file, server_key_file):
    return ZmqLink("tcp://127.0.0.1:1", CurveFiles(key_file, server_key_file))


def test_files_that_erllama_keys_makes_are_read(made):
    public, secret = read_key_pair(made.secret_file, "key_file", REMEDY)
    assert zmq.curve_public(secret) == public == made.key.public.encode()
    assert len(read_public_key(made.server_file, "server_key_file", REMEDY)) == 40
    link(made.secret_file, made.server_file)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_that_others_can_reach_is_refused_until_it_is_closed(made, mode):
    made.secret_file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"{made.secret_file}.*mode {mode:04o}.*chmod 600 {made.secret_file}"):
        link(made.secret_file, made.server_file)
    made.secret_file.chmod(0o600)
    made.server_file.chmod(0o644)  # the host's public key may be seen by everybody
    link(made.secret_file, made.server_file)


def test_a_missing_file_is_named_with_how_to_make_one(made, tmp_path):
    for files in ((tmp_path / "none.key", made.server_file), (made.secret_file, tmp_path / "none.key")):
        with pytest.raises(ConfigError, match=rf"{tmp_path / 'none.key'} does not exist; `erllama keys new NAME`"):
            link(*files)
    with pytest.raises(ConfigError, match="cannot read key file"):
        link(made.secret_file.parent, made.server_file)  # a directory


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: "", "no public-key line"),
        (lambda text: text.replace("public-key", "publik-key"), "no public-key line"),
        (lambda text: text[:-10], "no secret key"),
        (lambda text: text.replace("secret-key", "other-key"), "no secret key"),
        (lambda text: text.replace('secret-key = "', 'secret-key = "é'), "no secret key"),
        (lambda text: text.replace(text.split('"')[1], zmq.curve_keypair()[0].decode()), "does not belong"),
        (lambda text: "\0" * 100_000, "no public-key line"),
    ],
)
def test_a_spoilt_secret_file_is_named_with_the_way_out(made, spoil, words):
    made.secret_file.write_text(spoil(made.secret_file.read_text()))
    with pytest.raises(ConfigError, match=rf"{made.secret_file}.*{words}.*{REMEDY}"):
        read_key_pair(made.secret_file, "key_file", REMEDY)


# ---- the host's side -------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    """`check()` of a host that wants to listen on tcp, and its keys."""
    config = parse_config('[remote]\nlisten = "tcp://127.0.0.1:7700"\n')
    paths = Paths(tmp_path, tmp_path, tmp_path / "erllama.toml")
    return lambda: curve.check_remote(paths, config), paths.keys


def test_tcp_needs_a_client_that_may_connect(host):
    check, keys = host
    with pytest.raises(ConfigError, match=r"no client has a key.*erllama keys new") as caught:
        check()
    assert caught.value.details == {"key": "remote.listen"}
    curve.new_key(keys, "ann", "user")
    check()
    curve.remove_key(keys, "ann")
    with pytest.raises(ConfigError, match="no client has a key"):
        check()


def test_without_tcp_nothing_is_asked_for_and_nothing_made(tmp_path):
    curve.check_remote(Paths(tmp_path, tmp_path, tmp_path), parse_config(""))
    assert list(tmp_path.iterdir()) == []


def test_the_hosts_own_pair_must_be_whole_and_private(host):
    check, keys = host
    curve.new_key(keys, "ann", "user")
    secret_file = keys / "server.key_secret"
    secret_file.chmod(0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {secret_file}"):
        check()
    secret_file.chmod(0o600)
    secret_file.write_text("")
    with pytest.raises(ConfigError, match=rf"{secret_file} is no key file.*remove .*server\.key"):
        check()


@pytest.mark.parametrize(
    ("text", "words"), [("metadata\n    role = admin\n", "no key file"), (None, "no line 'role = user'")]
)
def test_a_spoilt_client_key_stops_a_start_and_not_the_other_clients(host, text, words):
    check, keys = host
    curve.new_key(keys, "ann", "user")
    bob = curve.new_key(keys, "bob", "user")
    bob_file = keys / "clients" / "bob.key"
    bob_file.write_text(text if text is not None else f'curve\n    public-key = "{bob.key.public}"\n')
    with pytest.raises(ConfigError, match=rf"{bob_file}.*{words}.*erllama keys new bob"):
        check()
    assert [key.name for key in curve.list_keys(keys)] == ["ann"]


def test_a_link_to_nowhere_among_the_clients_keeps_nobody_else_out(host):
    check, keys = host
    curve.new_key(keys, "ann", "user")
    (keys / "clients" / "bob.key").symlink_to(keys / "away")
    assert [key.name for key in curve.list_keys(keys)] == ["ann"]
    with pytest.raises(ConfigError, match="does not exist"):
        check()
