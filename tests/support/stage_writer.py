"""A child process that publishes one segment stage by stage and stops where it is told, to be killed there.

`python -m tests.support.stage_writer ENDPOINT STAGE FIRST_TOKEN`: prints `STAGE` when it has got there, then waits for ever.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import zmq

from erllama_host.ids import new_routing_id
from erllama_host.kv.segment import file_name
from erllama_host.protocol import PROTOCOL_VERSION, Envelope, decode_body, encode_body, encode_envelope
from erllama_host.protocol import cache as m
from erllama_host.transport.sockets import dealer
from tests.support.rows import BLOCK, SPACE, Row, payload_of
from workers.kv_files import open_reserved, payload_address, payload_checksum, seal
from workers.kv_types import SegmentSpec
from workers.kv_write import _wanted

STAGES = ("reserved", "created", "half_written", "packed", "sealed", "checked", "linked", "unlinked", "announced")
PAYLOAD_BYTES = 50_000


class Writer:
    def __init__(self, endpoint: str, stop_at: str) -> None:
        self.socket = dealer(zmq.Context(), new_routing_id())
        self.socket.connect(endpoint)
        self.stop_at = stop_at

    def ask(self, kind: str, body: object) -> object:
        self.socket.send_multipart([encode_envelope(Envelope(PROTOCOL_VERSION, kind, "1", "child")), encode_body(body)])
        _, answer = self.socket.recv_multipart()
        return decode_body(kind, answer, m.CACHE_KINDS[kind].answer)

    def reached(self, stage: str) -> None:
        if stage == self.stop_at:
            print(stage, flush=True)
            signal.pause()

    def run(self, first_token: int) -> None:
        meta = Row([first_token, *range(BLOCK - 1)]).blocks()[0]
        hello = m.WorkerRegister(
            model_id="child",
            pid=os.getpid(),
            incarnation=os.urandom(4).hex(),
            namespace=SPACE.root,
            tier="ram",
            block_tokens=BLOCK,
        )
        self.ask("k.hello", hello)
        reserved = self.ask("k.reserve", m.Reserve(segments=[_wanted(SegmentSpec(meta, PAYLOAD_BYTES))])).outcomes[0]
        assert reserved.token, reserved
        self.reached("reserved")
        mapping = open_reserved(reserved.path, reserved.file_bytes, reserved.generation, None)
        self.reached("created")
        address, _ = payload_address(mapping, meta)
        fill = payload_of(meta, 1)[0]
        ctypes.memset(address, fill, PAYLOAD_BYTES // 2)
        self.reached("half_written")
        ctypes.memset(address, fill, PAYLOAD_BYTES)
        self.reached("packed")
        *_, payload_sum = payload_checksum(mapping, address - mapping.address, PAYLOAD_BYTES)
        seal(mapping, meta, PAYLOAD_BYTES, payload_sum)
        self.reached("sealed")
        assert self.ask("k.renew", m.Renew(tokens=[reserved.token])).ours == [True]
        self.reached("checked")
        final = Path(reserved.path).parent.parent / file_name(meta.key, meta.kind)
        os.link(reserved.path, final)
        self.reached("linked")
        os.unlink(reserved.path)
        self.reached("unlinked")
        written = m.Written(
            token=reserved.token,
            inode=mapping.inode,
            generation=mapping.generation,
            payload_bytes=PAYLOAD_BYTES,
            file_bytes=mapping.num_bytes,
        )
        assert self.ask("k.announce", m.Announce(written=[written])).visible == [True]
        self.reached("announced")


if __name__ == "__main__":
    Writer(sys.argv[1], sys.argv[2]).run(int(sys.argv[3]))
