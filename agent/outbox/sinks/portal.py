"""The portal sink: faults and tracking records, over the hub session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from agent.backoff import FullJitterBackoff
from agent.clock import Clock, SystemClock
from agent.outbox.feed import Feed
from agent.outbox.message import Kind, OutboxMessage
from agent.outbox.sinks.base import RefusedMessageError, SinkStatus, StatusBook

log = logging.getLogger(__name__)

BATCH = 50


class PortalSink:
    """Deliver faults and tracking records to the portal, each batch acknowledged when the portal has stored it.

    Args:
        deliver: hands a batch to the portal and returns when the portal has it; raises ConnectionError when the session
            is down or ends first, RefusedMessageError when the portal will never take this batch: its messages then go
            one by one, and the refused ones are parked.
        connected: set while the hub session is signed in.

    On the loop only.
    """

    def __init__(
        self,
        deliver: Callable[[list[OutboxMessage]], Awaitable[None]],
        connected: asyncio.Event,
        *,
        name: str = "portal",
        kinds: frozenset[Kind] = frozenset({"fault", "tracking"}),
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.kinds = kinds
        self._deliver = deliver
        self._connected = connected
        self._clock = clock or SystemClock()
        self._book = StatusBook(name, self._clock)

    def status(self) -> SinkStatus:
        """How it stands now."""
        return self._book.status()

    async def run(self, feed: Feed) -> None:
        """Deliver what the feed has until cancelled."""
        backoff = FullJitterBackoff(first_seconds=1.0, most_seconds=60.0)
        try:
            while True:
                await self._connected.wait()
                self._book.connected()
                batch = await feed.take(BATCH)
                if not self._connected.is_set():
                    # It went while there was nothing to deliver.
                    feed.give_back([message.id for message in batch])
                    self._book.disconnected()
                elif await self._hand_over(feed, batch):
                    backoff.reset()
                else:
                    await self._clock.sleep(backoff.next_seconds())
        finally:
            self._book.disconnected()

    async def _hand_over(self, feed: Feed, batch: list[OutboxMessage]) -> bool:
        ids = [message.id for message in batch]
        self._book.sent += len(ids)
        try:
            await self._deliver(batch)
        except ConnectionError as error:
            feed.give_back(ids)
            self._book.disconnected(str(error) or "the session to the portal ended")
            log.info("%d records wait for the portal: %s", len(ids), error, extra={"action": "portal_away"})
            return False
        except RefusedMessageError as error:
            return await self._hand_over_singly(feed, batch, error)
        except BaseException:
            feed.give_back(ids)
            raise
        self._book.acknowledged += len(ids)
        await feed.acknowledge(ids)
        return True

    async def _hand_over_singly(self, feed: Feed, batch: list[OutboxMessage], refusal: RefusedMessageError) -> bool:
        if len(batch) == 1:
            self._book.parked += 1
            await feed.park(batch[0].id, str(refusal))
            return True
        for index, message in enumerate(batch):
            if not await self._hand_over(feed, [message]):
                feed.give_back([later.id for later in batch[index + 1 :]])
                return False
        return True
