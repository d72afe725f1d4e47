"""Attack a running host with hostile messages: `python -m tests.fuzz --cases 100000`.

Every case must leave the host answering, the victim model serving the same tokens as before, and no process restarted. Prints a
table of what came back. The short run in CI is tests/processes/test_fuzz_wire.py.
"""

import argparse
import collections
import sys
import tempfile
import time
from dataclasses import dataclass, field

import msgpack
import zmq

from erllama_host import Client
from erllama_host.config import Config, find_paths
from erllama_host.supervisor import start_host, stop_host
from tests.support.wire_cases import CaseMaker

BATCH = 50
VICTIM = "victim"
PROMPT = "does it still answer?"


@dataclass
class Outcome:
    """What the attack showed."""

    sent: int = 0
    replies: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)


def attack(endpoint: str, cases: int, seed: int) -> Outcome:
    """Send `cases` hostile messages to the host at `endpoint`, checking its health between batches."""
    outcome = Outcome()
    with Client(endpoint) as client:
        model = client.load_model(model_id=VICTIM, backend="stub", path="", n_ctx=512)
        before = model.complete(PROMPT, max_tokens=8).tokens
        pids = client.models()
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.SNDHWM, 10_000)
        socket.connect(endpoint)
        try:
            for case in CaseMaker(seed, VICTIM).cases(cases):
                socket.send_multipart([case.envelope, case.body])
                outcome.sent += 1
                if outcome.sent % BATCH == 0:
                    _drain(socket, outcome)
                    if client.hello().pid <= 0:
                        outcome.problems.append(f"after {outcome.sent}: the host does not say who it is")
            _drain(socket, outcome, timeout_ms=500)
        finally:
            context.destroy(linger=0)
        if model.complete(PROMPT, max_tokens=8).tokens != before:
            outcome.problems.append("the model answers differently after the attack")
        if client.models().get(VICTIM) != pids.get(VICTIM):
            outcome.problems.append(
                f"the worker was restarted: {pids.get(VICTIM)} before, {client.models().get(VICTIM)} after"
            )
    return outcome


def _drain(socket: zmq.Socket, outcome: Outcome, timeout_ms: int = 0) -> None:
    while socket.poll(timeout_ms):
        frames = socket.recv_multipart()
        kind = msgpack.unpackb(frames[0])[1]
        code = msgpack.unpackb(frames[1]).get("code", "") if kind == "error" else ""
        outcome.replies[f"{kind} {code}".strip()] += 1


def main() -> int:
    """Run the attack on a private host."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="erl-", dir="/tmp") as directory:
        paths = find_paths({"ERLLAMA_HOME": f"{directory}/h", "ERLLAMA_RUN": f"{directory}/r"})
        start_host(paths, Config(), detach=True)
        try:
            outcome = attack(paths.endpoint, options.cases, options.seed)
        finally:
            stop_host(paths)
    print(f"seed {options.seed}: {outcome.sent} messages sent")
    for name, count in outcome.replies.most_common():
        print(f"{count:8d}  {name}")
    for problem in outcome.problems:
        print(f"PROBLEM   {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
