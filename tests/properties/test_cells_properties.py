"""The book-keeping of live KV against a simple model: cells as objects with owners."""

from array import array

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from erllama_host.kv.keys import KeySpace
from workers.cells import Cells

SPACE = KeySpace(bytes(32), 0, bytes(32))
NUM_SEQS = 6


class CellsMachine(RuleBasedStateMachine):
    """Every cell of the model is one object; sharing shares objects, so counting them is trivial."""

    def __init__(self):
        super().__init__()
        self.cells = Cells(NUM_SEQS, 10_000, can_truncate=True, counts_cells=True)
        self.model = {}
        self.next_token = 0

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.model, key=lambda live: live.seq)))

    @precondition(lambda self: len(self.model) < NUM_SEQS)
    @rule(owned=st.booleans())
    def open(self, owned):
        live = self.cells.open(SPACE, 0.0)
        live.owner = "somebody" if owned else None
        self.model[live] = []

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(1, 20))
    def grow(self, data, count):
        live = self.pick(data)
        tokens = array("I", range(self.next_token, self.next_token + count))
        self.next_token += count
        self.cells.grew(live, tokens)
        self.model[live] += [object() for _ in range(count)]

    @precondition(lambda self: 0 < len(self.model) < NUM_SEQS)
    @rule(data=st.data())
    def share(self, data):
        source = self.pick(data)
        if not source.tokens:
            return
        end = data.draw(st.integers(1, len(source.tokens)))
        target = self.cells.open(SPACE, 0.0)
        self.cells.shared(source, target, end)
        self.model[target] = self.model[source][:end]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data):
        live = self.pick(data)
        end = data.draw(st.integers(0, len(live.tokens)))
        self.cells.truncated(live, end)
        del self.model[live][end:]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def close(self, data):
        live = self.pick(data)
        self.cells.closed(live)
        del self.model[live]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), bound=st.integers(0, 60))
    def victims(self, data, bound):
        idle = self.cells.idle()
        victims = self.cells.over_bound(bound, idle)
        assert victims == idle[: len(victims)]
        kept = [live for live in self.model if live not in victims]
        busy = {cell for live in kept if live.owner for cell in self.model[live]}
        held = {cell for live in kept for cell in self.model[live]} - busy
        assert len(held) <= bound or len(victims) == len(idle)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), cut=st.integers(0, 100), more=st.integers(0, 3))
    def match(self, data, cut, more):
        live = self.pick(data)
        row = array("I", list(live.tokens[:cut]) + [10**6] * more)
        found = self.cells.best_match(row.tobytes(), SPACE, len(row))
        want = max(
            (_common(other.tokens, row) for other in self.model),
            default=0,
        )
        assert (found.length if found else 0) == want
        if found:
            assert found.source.tokens[: found.length] == row[: found.length]

    @invariant()
    def counts_are_exact(self):
        everything = {cell for cells in self.model.values() for cell in cells}
        owned = {cell for live, cells in self.model.items() if live.owner for cell in cells}
        assert self.cells.used == len(everything) and self.cells.retained == len(everything) - len(owned)
        assert self.cells.free_ids == NUM_SEQS - len(self.model)
        for live, cells in self.model.items():
            assert len(live.tokens) == len(cells)
            assert sum(end - start for _, start, end in live.extents) == len(cells)


def _common(left, right):
    count = 0
    while count < min(len(left), len(right)) and left[count] == right[count]:
        count += 1
    return count


CellsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCells = CellsMachine.TestCase
