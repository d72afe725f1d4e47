"""The daemon's loop, turned by hand, between real sockets and files: what comes in one turn, and what goes wrong around it."""

import io
import os
import subprocess
import sys
import threading

import msgspec
import pytest
import zmq

from cache_daemon.__main__ import stop_grace_s
from cache_daemon.actions import Move, Unlink
from cache_daemon.catalog import Catalog, CatalogSettings
from cache_daemon.entries import TierSpec
from cache_daemon.service import CacheService
from cache_daemon.tiers.directory import TierDirectory
from erllama_host.config import ModelConfig, ModelSpec, Paths
from erllama_host.ids import new_routing_id
from erllama_host.kv.segment import file_name
from erllama_host.observability import Log
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, encode_body, encode_envelope
from erllama_host.protocol import cache as m
from erllama_host.protocol.calls import CacheAnswer, CacheCall
from erllama_host.transport.sockets import dealer, router
from tests.support.rows import BLOCK, SPACE, Row
from workers.kv_files import link_final, open_reserved, payload_address, payload_checksum, seal
from workers.kv_types import SegmentSpec
from workers.kv_write import _wanted

PAYLOAD_BYTES = 9000
META = Row(range(BLOCK)).blocks()[0]


class Daemon:
    """A service in this process; `turn` is one round of its loop."""

    def __init__(self, directory, kinds=("ram",)):
        self.context = zmq.Context()
        self.socket = router(self.context)
        self.socket.bind("inproc://cache")
        self.log = io.StringIO()
        self.tiers = [TierDirectory(TierSpec(kind, kind, str(directory / kind), 1 << 20)) for kind in kinds]
        catalog = Catalog([tier.spec for tier in self.tiers], CatalogSettings(block_tokens=BLOCK))
        self.service = CacheService(catalog, self.tiers, self.socket, Log("cache", stream=self.log), incarnation="one")
        self.workers = []
        while catalog.recovering:
            self.service._round()

    @property
    def catalog(self):
        return self.service.catalog

    def turn(self):
        """One round, after everything that was sent has come."""
        assert self.socket.poll(10_000), "nothing has come"
        self.service._round()

    def worker(self, pid, tier="ram"):
        """A registered worker."""
        self.workers.append(Worker(self, pid, tier))
        return self.workers[-1]

    def until(self, condition):
        """Rounds until something is so."""
        for _ in range(10_000):
            if condition():
                return
            self.service._round()
        raise AssertionError("it never came to that")

    def close(self):
        for worker in self.workers:
            worker.socket.close(linger=0)
        self.socket.close(linger=0)
        self.service.stop(0.0)
        self.service.run()
        self.context.term()
        for tier in self.tiers:
            tier.close()


class Worker:
    """A worker's side of the conversation, its files included."""

    def __init__(self, daemon, pid, tier):
        self.daemon = daemon
        self.socket = dealer(daemon.context, new_routing_id())
        self.socket.connect("inproc://cache")
        hello = m.WorkerRegister(
            model_id="m", pid=pid, incarnation=os.urandom(4).hex(), namespace=SPACE.root, tier=tier, block_tokens=BLOCK
        )
        assert self.ask("k.hello", hello).daemon == "one"

    def send(self, kind, body):
        self.socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, kind, "1", "m")), encode_body(body)])

    def answer(self, kind):
        assert self.socket.poll(10_000), f"no answer to {kind}"
        return decode_body(kind, self.socket.recv_multipart()[1], m.CACHE_KINDS[kind].answer)

    def ask(self, kind, body):
        self.send(kind, body)
        self.daemon.turn()
        return self.answer(kind)

    def write(self, meta):
        """Everything up to the link; returns what is to be announced."""
        (reserved,) = self.ask("k.reserve", m.Reserve(segments=[_wanted(SegmentSpec(meta, PAYLOAD_BYTES))])).outcomes
        mapping = open_reserved(reserved.path, reserved.file_bytes, reserved.generation, None)
        address, _ = payload_address(mapping, meta)
        *_, payload_sum = payload_checksum(mapping, address - mapping.address, PAYLOAD_BYTES)
        header = seal(mapping, meta, PAYLOAD_BYTES, payload_sum)
        tier = next(tier for tier in self.daemon.tiers if tier.spec.name == reserved.tier)
        linked = link_final(reserved.path, str(tier.path / file_name(meta.key, meta.kind)), mapping, header)
        mapping.close()
        return m.Written(
            token=reserved.token,
            inode=linked.inode,
            generation=linked.generation,
            payload_bytes=linked.payload_bytes,
            file_bytes=linked.file_bytes,
        )

    def save(self, meta):
        assert self.ask("k.announce", m.Announce(written=[self.write(meta)])).visible == [True]


@pytest.fixture
def daemon(tmp_path):
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_what_a_dead_writer_had_linked_is_there_for_whoever_asks_in_the_same_turn(daemon):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    daemon.worker(child.pid).write(META)
    successor = daemon.worker(os.getpid())
    child.kill()
    child.wait()
    child.stdin.close()
    successor.send("k.reserve", m.Reserve(segments=[_wanted(SegmentSpec(META, PAYLOAD_BYTES))]))
    daemon.turn()
    assert successor.answer("k.reserve").outcomes[0].there, "else it is written once more, and found twice"


@pytest.mark.parametrize("is_damaged", [True, False])
def test_what_a_reader_died_over_is_compared_if_it_came_from_a_disk(tmp_path, is_damaged):
    daemon = Daemon(tmp_path, ("ram", "disk"))
    daemon.worker(os.getpid(), "disk").save(META)
    holdings, identity = daemon.catalog.holdings, (META.key, META.kind)
    daemon.until(lambda: "disk" in holdings.entries[identity].copies)
    holdings.trim("ram", 0)
    daemon.service._carry_out()
    if is_damaged:
        path = daemon.tiers[1].path / file_name(*identity)
        path.write_bytes(path.read_bytes().replace(b"\0" * 100, b"?" * 100))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    prompt = m.Lookup(root=META.root, block_keys=META.key, tokens=META.tokens, prompt_key=META.key, reuse="cut")
    assert daemon.worker(child.pid).ask("k.lookup", prompt).hit_len == BLOCK
    child.kill()
    child.wait()
    child.stdin.close()
    daemon.until(lambda: len(daemon.service._peers) == 1 and not daemon.service._verifier.num_pending)
    assert (identity in holdings.entries) == (not is_damaged)
    daemon.close()


class Client:
    """Whoever runs `erllama cache`."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.socket = dealer(daemon.context, new_routing_id())
        self.socket.connect("inproc://cache")
        daemon.workers.append(self)

    def send(self, op, **arguments):
        body = encode_body(CacheCall(op=op, arguments=arguments))
        self.socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, "cache", "1")), body])
        self.daemon.turn()

    def answer(self):
        while not self.socket.poll(0):
            self.daemon.service._round()
        return decode_body("cache", self.socket.recv_multipart()[1], CacheAnswer).result


@pytest.fixture
def slow_verifier(daemon):
    """The thread that compares checksums does not begin before this is set."""
    gate = threading.Event()
    daemon.service._verifier.submit(gate.wait, lambda result: None)
    yield gate
    gate.set()


def test_verifying_keeps_only_what_it_looks_at_from_being_evicted(daemon, slow_verifier, monkeypatch):
    monkeypatch.setattr("cache_daemon.admin.VERIFY_BATCH", 2)
    worker, client = daemon.worker(os.getpid()), Client(daemon)
    metas = [Row([first, *range(BLOCK - 1)]).blocks()[0] for first in range(5)]
    for meta in metas:
        worker.save(meta)
    client.send("verify")
    leased = [daemon.catalog.leases.is_leased((meta.key, meta.kind)) for meta in metas]
    assert leased.count(True) == 2
    assert daemon.catalog.holdings.evict_entry((metas[-1].key, metas[-1].kind))
    slow_verifier.set()
    assert client.answer() == {"checked_files": 4, "corrupt_files": 0}
    assert not len(daemon.catalog.leases)


def test_a_daemon_that_is_told_to_stop_waits_for_the_slowest_save_of_the_models_that_run(tmp_path):
    paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    paths.prepare()
    assert stop_grace_s(paths) == 35.0
    spec = ModelSpec(model_id="slow", load_id="1", config=ModelConfig(evict_save_timeout_s=100.0))
    paths.spec_file("slow").write_bytes(msgspec.json.encode(spec))
    assert stop_grace_s(paths) == 105.0


def test_files_that_cannot_be_removed_moved_or_touched_are_lines_in_the_log(daemon, tmp_path):
    """As on a disk that has become read-only: the daemon goes on, and the tier can still be read."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").touch()
    worker = daemon.worker(os.getpid())
    assert worker.ask("k.announce", m.Announce(written=[worker.write(META)])).visible == [True]
    actions = daemon.catalog.holdings.actions
    actions += [Unlink(str(tmp_path / "directory")), Move(str(tmp_path / "none"), str(tmp_path / "directory"))]
    daemon.service._carry_out()
    segment = daemon.tiers[0].path / file_name(META.key, META.kind)
    segment.unlink()
    daemon.catalog.holdings.touched.add((META.key, META.kind))
    daemon.service._mirror_times()
    for event in ("file_not_removed", "file_not_recycled", "segment_file_not_touched"):
        assert event in daemon.log.getvalue()
