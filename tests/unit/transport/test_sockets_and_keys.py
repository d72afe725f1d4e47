"""Sockets that never block and never drop in silence; the pump; keys and their files."""

import asyncio
import select

import pytest
import zmq
from zmq.auth import load_certificate

from erllama_host.config import Config, Paths, parse_config
from erllama_host.errors import ConfigError, InvalidRequest
from erllama_host.ids import new_routing_id
from erllama_host.observability import Log
from erllama_host.transport import curve
from erllama_host.transport.pump import BATCH, Pump
from erllama_host.transport.sockets import dealer, receive, router, send
from erllama_host.transport.wakeup import Wakeup


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def short(tmp_path_factory):
    return f"ipc://{tmp_path_factory.mktemp('s')}/a.sock"


def test_a_router_reports_what_it_cannot_send(context, short):
    server = router(context, high_water_mark=5)
    server.bind(short)
    assert send(server, [b"nobody", b"x"]) is False
    name = new_routing_id()
    client = dealer(context, name, high_water_mark=5)
    client.connect(short)
    send(client, [b"hello"])
    assert server.poll(20_000)
    assert receive(server) == [name, b"hello"]
    results = [send(server, [name, b"x" * 100_000]) for _ in range(2000)]
    assert results[0] is True and results[-1] is False, "a client that does not read is noticed, nobody waits"
    assert receive(server) is None
    client.close()
    server.close()


def test_a_name_that_comes_back_is_served_anew(context, short):
    server, name = router(context), new_routing_id()
    server.bind(short)
    for word in (b"first", b"second"):
        client = dealer(context, name)
        client.connect(short)
        client.send_multipart([word])
        assert server.poll(20_000)
        assert receive(server) == [name, word]
        server.send_multipart([name, b"for " + word])
        assert client.poll(20_000)
        assert receive(client) == [b"for " + word]
        client.close()
    server.close()


async def test_a_pump_reads_everything_also_after_its_own_sends(context, short):
    server = router(context)
    server.bind(short)
    client = dealer(context, new_routing_id())
    client.connect(short)
    wanted, seen, done = BATCH * 3 + 1, [], asyncio.Event()

    def echo(frames: list[bytes]) -> None:
        pump.send(frames)

    def collect(frames: list[bytes]) -> None:
        seen.append(frames[0])
        if len(seen) == wanted:
            done.set()

    pump, answers = Pump(server, echo), Pump(client, collect)
    pump.start()
    answers.start()
    for number in range(wanted):
        assert answers.send([str(number).encode()])
    await asyncio.wait_for(done.wait(), 30)
    assert seen == [str(number).encode() for number in range(wanted)]
    pump.close()
    answers.close()
    pump.kick()  # after the end: nothing


async def test_a_handler_that_raises_does_not_hold_up_what_follows(context, short):
    server = router(context)
    server.bind(short)
    client = dealer(context, new_routing_id())
    client.connect(short)
    seen, raised, done = [], [], asyncio.Event()

    def handle(frames: list[bytes]) -> None:
        if frames[1] == b"bad":
            raise ValueError("unexpected")
        seen.append(frames[1])
        if frames[1] == b"last":
            done.set()

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context["exception"]))
    for word in (b"bad", b"good", b"bad", b"last"):
        client.send_multipart([word])
    assert await asyncio.to_thread(server.poll, 20_000)
    pump = Pump(server, handle)
    pump.start()
    await asyncio.wait_for(done.wait(), 20)
    assert seen == [b"good", b"last"] and len(raised) == 2
    pump.close()
    client.close()


def test_a_wakeup_wakes_until_it_is_closed_and_is_harmless_afterwards():
    """A signal handler may come at the very end."""
    wakeup = Wakeup()
    wakeup.set()
    wakeup.set()
    assert select.select([wakeup.fd], [], [], 20)[0]
    wakeup.clear()
    assert not select.select([wakeup.fd], [], [], 0)[0]
    wakeup.close()
    wakeup.set()


def test_keys_are_made_listed_and_removed(tmp_path):
    keys = tmp_path / "keys"
    made = curve.new_key(keys, "ann", "user")
    curve.new_key(keys, "root", "admin")
    assert [(key.name, key.role) for key in curve.list_keys(keys)] == [("ann", "user"), ("root", "admin")]
    public, secret = load_certificate(made.secret_file)
    assert public.decode() == made.key.public and secret is not None
    assert load_certificate(made.server_file)[1] is None, "the server's secret is not in the public file"
    for path in keys.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert curve.server_key(keys) == curve.server_key(keys)
    with pytest.raises(InvalidRequest, match="already"):
        curve.new_key(keys, "ann", "user")
    for name in ("server", "../x", "", "a/b"):
        with pytest.raises(InvalidRequest):
            curve.new_key(keys, name, "user")
        assert curve.remove_key(keys, name) is False
    assert curve.remove_key(keys, "ann") is True
    assert [key.name for key in curve.list_keys(keys)] == ["root"]
    assert not made.secret_file.exists()


def test_roles_travel_as_user_ids():
    assert curve.role_of(b"admin:root") == "admin"
    assert curve.role_of(b"user:admin:x") == "user"
    assert curve.role_of(b"") == "user"


@pytest.mark.parametrize("listen", ["ipc:///tmp/x", "tcp://256.1.1.1:1", "tcp://nonsense"])
def test_addresses_that_cannot_be_served(context, tmp_path, listen):
    async def attempt() -> None:
        config = parse_config(f'[remote]\nlisten = "{listen}"\n')
        paths = Paths(tmp_path, tmp_path, tmp_path)
        curve.open_remote(context, config, paths, Log("test"), lambda *_: None)

    with pytest.raises(ConfigError, match="listen"):
        asyncio.run(attempt())


def test_where_keys_are(tmp_path):
    paths = Paths(tmp_path, tmp_path, tmp_path)
    assert curve.keys_directory(paths, Config()) == tmp_path / "keys"
    assert str(curve.keys_directory(paths, parse_config('[remote]\nkeys_dir = "/k"\n'))) == "/k"
