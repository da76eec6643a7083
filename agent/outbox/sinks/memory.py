"""A sink whose far end is a list: for tests of whatever stands before it, and the simplest example of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.clock import Clock, SystemClock
from agent.outbox.feed import Feed
from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.sinks.base import SinkStatus, StatusBook

ALL_KINDS: frozenset[Kind] = frozenset({"telemetry", "fault", "tracking"})


class MemorySink:
    """Deliver into `received`. On the loop only.

    Args:
        name: the sink's name (default `memory`).
        kinds: what it wants (default everything).
        refuses: called for each message; a text means that the far end refuses it for ever, and why.

    Example:
        sink = MemorySink()
        task = asyncio.create_task(sink.run(outbox.feed(sink.name, sink.kinds)))
        await sink.wait_for(10)
    """

    def __init__(
        self,
        name: str = "memory",
        *,
        kinds: frozenset[Kind] = ALL_KINDS,
        refuses: Callable[[OutboxMessage], str | None] = lambda _: None,
        clock: Clock | None = None,
        window: int = 100,
    ) -> None:
        self.name = name
        self.kinds = kinds
        self.received: list[OutboxMessage] = []
        """What the far end got, in order of arrival."""
        self._refuses = refuses
        self._window = window
        self._book = StatusBook(name, clock or SystemClock())
        self._online = asyncio.Event()
        self._online.set()
        self._arrived = asyncio.Condition()

    def go_down(self) -> None:
        """Make the far end unreachable."""
        self._online.clear()
        self._book.disconnected("the far end is down")

    def come_up(self) -> None:
        """Make the far end reachable again."""
        self._online.set()

    async def wait_for(self, count: int) -> list[OutboxMessage]:
        """Wait until `count` messages have arrived in all, and return them."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.received) >= count)
        return self.received[:count]

    async def run(self, feed: Feed) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                await self._online.wait()
                self._book.connected()
                await self._deliver(feed)
        finally:
            self._book.disconnected()

    def status(self) -> SinkStatus:
        """How it stands now."""
        return self._book.status()

    async def _deliver(self, feed: Feed) -> None:
        while self._online.is_set():
            batch = await feed.take(self._window)
            if not self._online.is_set():
                feed.give_back([message.id for message in batch])
                return
            confirmed = []
            for message in batch:
                if (reason := self._refuses(message)) is not None:
                    self._book.parked += 1
                    await feed.park(message.id, reason)
                    continue
                self._book.sent += 1
                self._book.acknowledged += 1
                self.received.append(message)
                confirmed.append(message.id)
            await feed.acknowledge(confirmed)
            async with self._arrived:
                self._arrived.notify_all()
