"""Many clients of every manner at one worker: each stream is gapless and ends once, and greedy answers do not depend on company."""

import random

import pytest

from erllama_host.ids import new_ref
from erllama_host.protocol.inference import Cancel, ChatRequest, Credit, Infer, Resume, SamplingParams, unpack_tokens
from tests.support.workers import MODEL_ID, WAIT_S, WorkerProcess, text_of

pytestmark = pytest.mark.process

NUM_REQUESTS = 250
ENDS_WITH_AN_ERROR = {"ContextOverflow", "InvalidRequest", "SessionBusy", "QueueFull", "AdapterNotFound"}


class Client:
    """One request and what its client knows of it."""

    def __init__(self, number, randomness):
        self.random = randomness
        self.ref, self.peer = new_ref(MODEL_ID), b"\x01client%d" % (number % 20)
        self.ids, self.text, self.ends, self.accepted = [], "", [], None
        self.greedy_prompt = None
        self.request = self._request(number)

    def _request(self, number):
        pick = self.random.choice
        prompt = f"{pick(['alpha', 'beta', 'gamma'])} {number % 7} " * self.random.randint(1, 30)
        if self.random.random() < 0.3:
            self.greedy_prompt = prompt
            return Infer(text=prompt, max_tokens=16, credit=pick([1, 8, 256]), priority=pick([-5, 0, 5]))
        params = SamplingParams(
            temperature=pick([0.0, 1.0, 100.0]),
            top_k=pick([0, 1, 40]),
            top_p=pick([0.1, 1.0]),
            repetition_penalty=pick([1.0, 1.5]),
            logprobs=pick([None, 0, 3]),
            logit_bias=pick([{}, {"101": 5.0}, {"99999": 1.0}]),
            seed=pick([None, 7]),
        )
        chat = ChatRequest(messages=[{"role": "user", "content": prompt}]) if self.random.random() < 0.3 else None
        return Infer(
            text=None if chat else prompt,
            chat=chat,
            params=params,
            max_tokens=pick([0, 1, 5, 40, None]) if len(prompt) > 150 else pick([0, 1, 5, 40]),
            stop=pick([[], ["e"], [" ", "aa", "zz"]]),
            session_id=pick([None, None, "one", "two"]),
            credit=pick([0, 1, 256]),
            ignore_eos=pick([False, True]),
        )

    def receive(self, kind, body):
        match kind:
            case "accepted":
                self.accepted = body
            case "tokens":
                if body.first_index == len(self.ids) and not self.ends:
                    self.ids += unpack_tokens(body.ids)
                    self.text += "".join(part.text for part in body.parts)
                else:
                    assert body.first_index < len(self.ids), "tokens are missing"
            case "done":
                self.text += "" if self.ends else text_of((), body)
                self.ends.append(body)
            case "error":
                self.ends.append(body)

    def next_move(self):
        """What a client may do while it waits: grant, ask again, give up."""
        chance = self.random.random()
        if chance < 0.02:
            return "cancel", Cancel()
        if chance < 0.1:
            return "resume", Resume(next_index=len(self.ids))
        return "credit", Credit(tokens=self.random.choice([0, 4, 64]))


@pytest.mark.parametrize("seed", [1, 2])
def test_all_streams_are_whole_and_end_once(seed):
    randomness = random.Random(seed)
    config = {"backend": "stub", "n_ctx": 600, "n_cells": 1500, "n_seq_max": 4, "max_queue": 180, "n_batch": 64}
    with WorkerProcess(config) as worker:
        clients = {client.ref: client for client in (Client(n, randomness) for n in range(NUM_REQUESTS))}
        waiting = dict(clients)
        for client in clients.values():
            worker.controller.send("infer", client.request, ref=client.ref, peer=client.peer)
        while waiting:
            client = randomness.choice(list(waiting.values()))
            kind, body = client.next_move()
            worker.controller.send(kind, body, ref=client.ref, peer=client.peer)
            while worker.controller.socket.poll(1):
                envelope, body = worker.controller.receive(WAIT_S)
                if envelope.ref in clients:
                    clients[envelope.ref].receive(envelope.kind, body)
                    if clients[envelope.ref].ends:
                        waiting.pop(envelope.ref, None)
        for client in clients.values():
            _check(client)
        assert sum(not hasattr(client.ends[0], "code") for client in clients.values()) > 50
        for client in [one for one in clients.values() if _is_plain(one)][:10]:
            _, tokens, done = worker.controller.stream(_alone(worker, client))
            alone = text_of(tokens, done)
            assert alone == client.text, client.greedy_prompt
        assert worker.controller.call("status").status == "idle"


def _check(client):
    ends = {(type(end).__name__, getattr(end, "code", "")) for end in client.ends}
    assert len(ends) == 1  # sent again on a late `resume`, but the same
    end = client.ends[0]
    if hasattr(end, "code"):
        assert end.code in ENDS_WITH_AN_ERROR, end
    else:
        assert end.generated == len(client.ids)
        assert all(stop not in client.text for stop in client.request.stop)
        assert client.accepted is not None or end.cancelled


def _is_plain(client):
    return client.greedy_prompt is not None and getattr(client.ends[0], "finish_reason", "") == "length"


def _alone(worker, client):
    ref = new_ref(MODEL_ID)
    worker.controller.send("infer", Infer(text=client.greedy_prompt, max_tokens=16), ref=ref, peer=client.peer)
    return ref
