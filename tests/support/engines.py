"""An engine on the stub (or any backend) that a test drives tick by tick, without a thread."""

import io

import msgspec

from erllama_host.config.model import ModelConfig, ModelSpec
from erllama_host.observability import Log
from erllama_host.protocol.inference import SamplingParams
from workers.backend.open import open_backend
from workers.commands import Answer, EngineCall, Failed, Finished, Generated, Submit
from workers.engine.load import load
from workers.engine.loop import Serving
from workers.engine.mailbox import Mailbox
from workers.text import AnswerText

GREEDY = SamplingParams()


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def make_text(vocabulary, submit):
    return AnswerText(vocabulary, submit.stop)


class Harness:
    """A served model and everything it reported."""

    def __init__(self, *, store=None, stub=None, spec=None, backend=None, clock=None, home="", cache=None, **config):
        options = {"backend": "stub", "n_ctx": 512, "n_cells": 1024, "stream_interval_ms": 0.0, **config}
        if options["backend"] == "stub":
            options["stub"] = stub or {}
        self.clock = clock or Clock()
        self.spec = spec or ModelSpec(
            model_id="m", load_id="1", config=msgspec.convert(options, ModelConfig), home=str(home), cache=cache or {}
        )
        self.log = io.StringIO()
        self.mailbox = Mailbox(lambda: None)
        self.progress = []
        self.core, self.ready = load(
            self.spec,
            backend or open_backend,
            store or (lambda namespace, wake: None),
            make_text,
            self.mailbox,
            lambda fraction, phase: self.progress.append((fraction, phase)),
            self.clock,
            Log("worker", stream=self.log),
        )
        self.snapshots = []
        self.serving = Serving(self.core, self.snapshots.append)
        self.num_short_ways = 0
        self._check_short_way(self.serving._stepper)
        self.reports = []
        self.count = 0

    def _check_short_way(self, stepper):
        """Where a step goes on from the last one without planning, the plan must be the same: in every test with a harness."""
        next_tokens = stepper._next_tokens

        def checked():
            parts = next_tokens()
            if parts is not None:
                self.num_short_ways += 1
                assert sorted(stepper._plan(), key=by_ref) == sorted(parts, key=by_ref)
            return parts

        def by_ref(part):
            return part.request.ref

        stepper._next_tokens = checked

    # --- asking -------------------------------------------------------------------------------------------------------

    def tokens(self, text):
        return self.core.backend.vocabulary.tokenize(text)

    def submit(self, prompt, *, ref=None, params=GREEDY, max_tokens=8, **fields):
        """Post a request; `prompt` is text or ids. Returns its ref."""
        self.count += 1
        ref = ref or f"r{self.count}"
        ids = self.tokens(prompt) if isinstance(prompt, str) else list(prompt)
        self.mailbox.post(
            Submit(
                ref=ref, prompt=ids, params=params, seed=fields.pop("seed", 7), max_tokens=max_tokens,
                arrived_at=self.clock(), **fields,
            )
        )  # fmt: skip
        return ref

    def post(self, command):
        self.mailbox.post(command)

    def call(self, name, body=None, **fields):
        """Make a call and run until it is answered; returns its result or raises its error."""
        self.count += 1
        self.mailbox.post(EngineCall(self.count, name, body, **fields))
        answer = self.until(lambda: self.answer_of(self.count), patient=name == "load_adapter")
        if answer.error is not None:
            raise answer.error
        return answer.result

    # --- running ------------------------------------------------------------------------------------------------------

    def tick(self, count=1, step_s=0.001):
        """Some rounds; time goes on by `step_s` in each."""
        moved = False
        for _ in range(count):
            moved = self.serving.tick()
            self.reports += self.mailbox.reports()
            self.clock.now += step_s
        return moved

    def until(self, condition, most=5000, patient=False):
        """Tick until `condition()` is true; returns its value.

        `patient`: another thread (not the store's, which is waited for anyway) has to run first; else the rounds may be used up
        before it does.
        """
        for _ in range(most):
            value = condition()
            if value:
                return value
            if not self.tick() and (patient or self.core.kv.waiting):
                self.mailbox.wait(0.05)
        raise AssertionError(f"not reached in {most} ticks: {[(r.ref, r.phase) for r in self.core.by_ref.values()]}")

    def settle(self):
        """Run until nothing is left to do, saves included."""
        self.until(lambda: not self.core.by_ref and not self.core.kv.waiting)
        self.tick()

    def finish(self, *refs):
        """Run until these requests are over; returns the (last one's) final report."""
        self.until(lambda: all(self.end_of(ref) for ref in refs))
        return self.end_of(refs[-1])

    def run(self, prompt, **fields):
        """Submit, run to the end, and return the `Finished`."""
        return self.finish(self.submit(prompt, **fields))

    # --- what was reported --------------------------------------------------------------------------------------------

    def of(self, ref, kind):
        return [report for report in self.reports if isinstance(report, kind) and report.ref == ref]

    def end_of(self, ref):
        ends = self.of(ref, Finished) + self.of(ref, Failed)
        assert len(ends) <= 1, f"{ref} ended twice"
        return ends[0] if ends else None

    def ids(self, ref):
        """The ids reported for a request, checked to be gapless."""
        ids, first = [], None
        for report in self.of(ref, Generated):
            first = report.first_index if first is None else first
            assert report.first_index == first + len(ids)
            ids += report.ids
        return ids

    def text(self, ref):
        return "".join(part.text for report in self.of(ref, Generated | Finished) for part in report.parts)

    def answer_of(self, call_id):
        return next((one for one in self.reports if isinstance(one, Answer) and one.call_id == call_id), None)

    def close(self):
        """End it, and free the model: here the process goes on."""
        self.serving.close()
        self.core.backend.close()

    def drift(self):
        return self.core.pool.drift()
