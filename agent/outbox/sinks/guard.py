"""Finds the message on which a far end closes the connection, time after time, and puts it aside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal

from agent.outbox.feed import Feed
from agent.outbox.message import OutboxMessage
from agent.outbox.sinks.base import StatusBook

log = logging.getLogger(__name__)

DEATHS_TOGETHER: Final = 2
DEATHS_ALONE: Final = 2
OTHERS_SECONDS: Final = 60.0

Mode = Literal["normal", "alone", "others", "last try"]


class GuardedFeed:
    """A feed for sinks whose far end may answer a message by closing the connection.

    MQTT 3.1.1 has no other way to refuse a message, so that a naive sink would connect, send and be thrown out for
    ever. A message is suspected when two connections in a row ended with it as the oldest unconfirmed one. It is then
    sent alone; when that ends the connection twice too, others go first. Only when the far end takes one of them and
    closes the connection on the suspect once more is the suspect parked: a far end that is merely down parks nothing.

    The same methods as Feed, and `session_over` at the end of each connection. Counts what is acknowledged and parked
    in `book`. On the loop only.
    """

    def __init__(self, feed: Feed, book: StatusBook, *, others_seconds: float = OTHERS_SECONDS) -> None:
        self._feed = feed
        self._book = book
        self._others_seconds = others_seconds
        self.outstanding: dict[int, OutboxMessage] = {}
        """Taken and neither confirmed nor given back, in the order of taking."""
        self._mode: Mode = "normal"
        self._suspect = 0
        self._deaths = 0
        self._held: OutboxMessage | None = None
        self._confirmed_any = False
        self._free = asyncio.Event()

    async def take(self, limit: int) -> list[OutboxMessage]:
        """As Feed.take; one at a time while a message is suspected."""
        while True:
            if self._mode == "normal":
                batch = await self._feed.take(limit)
            elif self.outstanding:
                self._free.clear()
                await self._free.wait()
                continue
            elif self._mode == "last try" and self._held is not None:
                batch, self._held = [self._held], None
            else:
                batch = await self._take_one()
            self.outstanding.update((message.id, message) for message in batch)
            if batch:
                return batch

    async def acknowledge(self, ids: Sequence[int]) -> None:
        """As Feed.acknowledge."""
        for message_id in ids:
            if self.outstanding.pop(message_id, None) is None:
                continue
            self._confirmed_any = True
            self._book.acknowledged += 1
            if message_id == self._suspect:
                self._clear()
            elif self._mode == "others":
                self._mode = "last try"
        await self._feed.acknowledge(ids)
        if not self.outstanding:
            self._free.set()

    def give_back(self, ids: Sequence[int]) -> None:
        """As Feed.give_back: these were not sent."""
        for message_id in ids:
            self.outstanding.pop(message_id, None)
        self._feed.give_back(ids)
        if not self.outstanding:
            self._free.set()

    async def park(self, message_id: int, reason: str) -> None:
        """As Feed.park."""
        self.outstanding.pop(message_id, None)
        self._book.parked += 1
        if message_id == self._suspect:
            self._clear()
        await self._feed.park(message_id, reason)
        if not self.outstanding:
            self._free.set()

    async def session_over(self, reason: str, *, blame: bool = True) -> None:
        """The connection ended, for this reason: give back what is not confirmed.

        `blame` is False when it ended on purpose.
        """
        oldest = next(iter(self.outstanding), 0)
        confirmed_any, self._confirmed_any = self._confirmed_any, False
        if blame and oldest:
            await self._consider(oldest, reason, confirmed_any=confirmed_any)
        self._feed.give_back(list(self.outstanding))
        self.outstanding.clear()
        self._free.set()

    def close(self) -> None:
        """Give everything back: the sink ends."""
        self._feed.give_back(list(self.outstanding))
        self.outstanding.clear()
        self._clear()

    async def _take_one(self) -> list[OutboxMessage]:
        try:
            async with asyncio.timeout(None if self._mode == "alone" else self._others_seconds):
                batch = await self._feed.take(1)
        except TimeoutError:
            # There is nothing to compare the suspect with: it gets another chance.
            self._clear()
            return []
        if self._mode == "others" and batch[0].id == self._suspect:
            self._held = batch[0]
            return []
        return batch

    async def _consider(self, oldest: int, reason: str, *, confirmed_any: bool) -> None:
        if self._mode == "last try" and oldest == self._suspect:
            text = f"The far end takes others and closes the connection on this one: {reason}"
            log.warning("A message is parked: %s", text, extra={"action": "message_parked"})
            await self.park(oldest, text)
        elif self._mode == "normal":
            self._deaths = self._deaths + 1 if oldest == self._suspect and not confirmed_any else 1
            self._suspect = oldest
            if self._deaths >= DEATHS_TOGETHER:
                self._mode, self._deaths = "alone", 0
        elif self._mode == "alone" and oldest == self._suspect:
            self._deaths += 1
            if self._deaths >= DEATHS_ALONE:
                self._mode = "others"
        else:
            # Another one did not arrive either: it is the far end, not the message.
            self._clear()

    def _clear(self) -> None:
        if self._held is not None:
            self._feed.give_back([self._held.id])
            self._held = None
        self._mode = "normal"
        self._suspect = self._deaths = 0
        self._free.set()
