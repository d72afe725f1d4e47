"""circusd's control endpoint, asynchronously. The rest of the controller knows circus only through this file.

A command that meets circusd's lock is tried again: the hooks queue such commands (supervisor/mend.py), but a circusd by hand
may run without them.
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import zmq

from erllama_host.errors import InternalError, Timeout
from erllama_host.ids import new_routing_id
from erllama_host.transport.pump import Pump
from erllama_host.transport.sockets import dealer

CALL_TIMEOUT_S = 10.0
LOCKED = "arbiter is already running"
LOCK_RETRY_S = 0.05


class CircusClient:
    """Commands to circusd, and its events as hints that something happened to a watcher."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, events: str, on_hint: Callable[[str, str], None]
    ) -> None:
        """`on_hint(watcher, topic)` is called for every event; events may be lost, so it must not be relied upon."""
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._on_hint = on_hint
        control = dealer(context, new_routing_id())
        control.connect(endpoint)
        subscription = context.socket(zmq.SUB)
        subscription.setsockopt(zmq.LINGER, 0)
        subscription.setsockopt(zmq.SUBSCRIBE, b"watcher.")
        subscription.connect(events)
        self._control = Pump(control, self._on_reply)
        self._events = Pump(subscription, self._on_event)

    def start(self) -> None:
        """Begin to listen."""
        self._control.start()
        self._events.start()

    def close(self) -> None:
        """Close the sockets."""
        self._control.close()
        self._events.close()

    async def statuses(self) -> dict[str, str]:
        """Watcher → `active`, `stopped`, `starting`, `stopping`."""
        return dict((await self._call("status"))["statuses"])

    async def pids(self, watcher: str) -> list[int]:
        """Pids of the processes of a watcher; empty when there is no such watcher."""
        try:
            return [int(pid) for pid in (await self._call("list", name=watcher)).get("pids", [])]
        except InternalError:
            return []

    async def add(self, watcher: str, command: str, options: dict[str, Any]) -> None:
        """Add a watcher, stopped. One of that name is replaced: its options may be out of date."""
        if watcher in await self.statuses():
            await self.remove(watcher, CALL_TIMEOUT_S)
        await self._call("add", name=watcher, cmd=command, options=options, start=False)

    async def start_watcher(self, watcher: str) -> list[int]:
        """Start; pids of what was started. Empty means that exec failed or a hook refused: `add` says ok to both."""
        reply = await self._call("start", name=watcher, waiting=True, match="simple")
        return [int(pid) for pid in reply.get("info", {}).get("started", [])]

    async def restart_watcher(self, watcher: str, timeout_s: float) -> None:
        """Stop and start."""
        await self._call("restart", timeout_s=timeout_s, name=watcher, waiting=True, match="simple")

    async def remove(self, watcher: str, timeout_s: float) -> None:
        """Stop and forget a watcher; one that does not exist is fine."""
        try:
            await self._call("rm", timeout_s=timeout_s, name=watcher, waiting=True)
        except InternalError as error:
            if "not found" not in error.message:
                raise

    async def set_graceful_timeout(self, watcher: str, seconds: float) -> None:
        """How long a watcher's process may take to end."""
        await self._call("set", name=watcher, options={"graceful_timeout": seconds}, waiting=True)

    async def _call(self, command: str, timeout_s: float = CALL_TIMEOUT_S, **properties: Any) -> dict[str, Any]:
        """One command.

        Raises:
            Timeout: no answer in time. InternalError: circusd refused; the message has its reason.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + timeout_s
        while True:
            reply = await self._ask(command, properties, give_up_at - loop.time())
            if reply.get("status") != "error":
                return reply
            reason = str(reply.get("reason"))
            if LOCKED not in reason or loop.time() >= give_up_at:
                raise InternalError(f"circusd refused {command}: {reason}")
            await asyncio.sleep(LOCK_RETRY_S)

    async def _ask(self, command: str, properties: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        number = str(next(self._numbers))
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "command": command, "properties": properties}
        try:
            self._control.send([json.dumps(message).encode()])
            return await asyncio.wait_for(future, max(0.1, timeout_s))
        except TimeoutError as error:
            raise Timeout(f"circusd did not answer {command} within {timeout_s:.0f} s") from error
        finally:
            self._waiting.pop(number, None)

    def _on_reply(self, frames: list[bytes]) -> None:
        reply = json.loads(frames[-1])
        future = self._waiting.get(str(reply.get("id")))
        if future is not None and not future.done():
            future.set_result(reply)

    def _on_event(self, frames: list[bytes]) -> None:
        # `watcher.<name>.<topic>`; a model id may contain dots
        _, _, rest = frames[0].decode(errors="replace").partition(".")
        watcher, _, topic = rest.rpartition(".")
        self._on_hint(watcher, topic)
