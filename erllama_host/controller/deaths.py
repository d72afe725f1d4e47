"""What follows when a worker ends: the model is restarting or given up, clients are told, the reason is written down.

A death is seen by the pidfd at once, and again through circusd's exit note (notes.py), which tells how it ended and whether circusd
starts another. A worker that died before it said hello is seen by the note alone. Each end is dealt with once.
"""

import asyncio
import time

from erllama_host.controller import specs
from erllama_host.controller.ends import End, blame_address_space, explain
from erllama_host.controller.keeper import Keeper
from erllama_host.controller.last_words import SEEN_LINES, last_words, of_life, telling
from erllama_host.controller.lifecycle import Event, Model, State
from erllama_host.controller.memory import num_oom_kills
from erllama_host.controller.worker_calls import tell_moved
from erllama_host.controller.world import World
from erllama_host.errors import ErllamaError, ModelFailed, ModelLoadFailed
from erllama_host.supervisor import notes
from erllama_host.supervisor.notes import ExitNote
from erllama_host.supervisor.start import last_lines

NOTE_TIMEOUT_S = 3.0
NOTE_POLL_S = 0.02
LOG_WINDOW_BYTES = 65536
EVENT_OF_END = {
    "crashed": "crashed",
    "hung": "hung",
    "out_of_memory": "out_of_memory",
    "load_failed": "load_failed",
    "asked": "stopped",
}
"""Kind of end (ends.py) → name of the event in the journal; the rest have simply `died`."""


class Deaths:
    """Owner of nothing but the count of kernel kills seen so far."""

    def __init__(self, world: World, keeper: Keeper) -> None:
        self._world = world
        self._keeper = keeper
        self._oom_kills = num_oom_kills()
        keeper.on_death = self.on_death

    def on_death(self, model: Model, pid: int) -> None:
        """A process of the model has ended; that of an earlier life, told late, changes nothing for one that serves."""
        earlier_life = model.state is State.READY and pid != model.pid
        if pid in model.seen_ends or earlier_life:
            return
        model.seen_ends.add(pid)
        link = self._world.links.of_model(model.model_id)
        if link is not None and link.pid == pid:
            self._world.links.drop(model.model_id)
            self._world.asks.give_up(model.model_id)
            tell_moved(self._world, model.model_id, "")
        kill_reason, self_ended = model.kill_reason, model.state
        self._keeper.apply(model, Event.DIED)
        self._keeper.spawn(self._explain(model, pid, kill_reason, self_ended))

    def on_hint(self, watcher: str, topic: str) -> None:
        """circus has published an event about a watcher."""
        model_id = notes.model_of_watcher(watcher)
        model = self._world.models.find(model_id) if model_id is not None else None
        if model is not None and topic in ("reap", "gave_up", "stop"):
            self.look(model)

    def look(self, model: Model) -> None:
        """Deal with ends that only a note tells of."""
        for note in notes.read_exits(self._world.paths.run, notes.watcher_name(model.model_id)):
            self.on_death(model, note.pid)

    async def _explain(self, model: Model, pid: int, kill_reason: str, state: State) -> None:
        note = await self._note(model, pid)
        oom_kills = num_oom_kills()
        end = explain(note, kill_reason, oom_kills > self._oom_kills)
        self._oom_kills = oom_kills
        log_file = specs.log_file(self._world.paths, model.model_id)
        lines = of_life(last_lines(log_file, SEEN_LINES, LOG_WINDOW_BYTES), pid)
        end = blame_address_space(end, model.config.address_space_bytes, lines)
        if state is State.STOPPING or (end.kind in ("asked", "unknown") and self._was_sent_away(model, state)):
            return
        self._world.journal.add(
            EVENT_OF_END.get(end.kind, "died"), model.model_id, pid=pid, kind=end.kind, reason=end.text
        )
        self._world.count(f"worker_ends_{end.kind}")
        if end.kind != "asked":
            model.last_failure, model.last_log_lines = end.text, telling(lines)
        if note is not None and not note.respawn and not note.asked:
            self._keeper.fail(model, given_up(model, note, end), Event.GAVE_UP)

    def _was_sent_away(self, model: Model, state: State) -> bool:
        """Whether we ended the worker ourselves, notes and all: its model was let go, or forgotten after a failed load."""
        return state is State.AWAY or self._world.models.find(model.model_id) is not model

    async def _note(self, model: Model, pid: int) -> ExitNote | None:
        give_up_at = time.monotonic() + NOTE_TIMEOUT_S
        watcher = notes.watcher_name(model.model_id)
        while time.monotonic() < give_up_at:
            note = notes.exit_of(self._world.paths.run, watcher, pid)
            if note is not None:
                return note
            await asyncio.sleep(NOTE_POLL_S)
        return None


def given_up(model: Model, note: ExitNote, end: End) -> ErllamaError:
    """The error of a model whose worker circusd does not start any more."""
    error = ModelFailed if model.stays else ModelLoadFailed
    last = last_words(model.last_log_lines)
    return error(
        f"model {model.model_id!r} was given up: {end.text}; {note.reason}" + (f"; last words: {last}" if last else ""),
        reason=end.kind,
        last_log_lines=model.last_log_lines,
    )
