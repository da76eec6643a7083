"""What happened, told to whoever watches: pages, event streams, the node hub.

In one process the bus is a few queues. With several portal processes another implementation of the same interface
carries the events between them; nothing else changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

QUEUE_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `data` is what JSON can hold."""

    topic: str
    data: Mapping[str, Any]


class Subscription(Protocol):
    """Events of some topics from now on: `async with bus.subscribe(…) as events: async for event in events: …`.

    The iteration ends when the bus closes. A subscriber that is too slow loses the oldest events;
    `dropped` counts them.
    """

    dropped: int

    async def __aenter__(self) -> Subscription: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def next(self, timeout_seconds: float | None = None) -> Event | None:
        """The next event; None when the bus closed. Raises TimeoutError after `timeout_seconds`."""


class Bus(Protocol):
    """Publish and subscribe by exact topic."""

    def publish(self, topic: str, data: Mapping[str, Any]) -> None:
        """Hand an event over; never blocks and never raises. On the loop only."""

    def subscribe(self, *topics: str) -> Subscription:
        """Watch `topics`."""

    def close(self) -> None:
        """End every subscription."""


class LocalBus:
    """The bus of one process."""

    def __init__(self) -> None:
        self._subscriptions: dict[str, set[LocalSubscription]] = {}
        self._closed = False

    def publish(self, topic: str, data: Mapping[str, Any]) -> None:
        """Put the event into every subscriber's queue."""
        for subscription in self._subscriptions.get(topic, ()):
            subscription.put(Event(topic, data))

    def subscribe(self, *topics: str) -> LocalSubscription:
        """Watch `topics`; it starts with entering the context."""
        return LocalSubscription(self, topics)

    def close(self) -> None:
        """End every subscription, those that come later too."""
        self._closed = True
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.end()

    def add(self, subscription: LocalSubscription) -> None:
        """Enter a subscription; a closed bus ends it at once."""
        for topic in subscription.topics:
            self._subscriptions.setdefault(topic, set()).add(subscription)
        if self._closed:
            subscription.end()

    def remove(self, subscription: LocalSubscription) -> None:
        """Forget a subscription."""
        for topic in subscription.topics:
            left = self._subscriptions.get(topic, set())
            left.discard(subscription)
            if not left:
                self._subscriptions.pop(topic, None)


class LocalSubscription:
    """One subscriber's bounded queue."""

    def __init__(self, bus: LocalBus, topics: tuple[str, ...]) -> None:
        self.topics = topics
        self.dropped = 0
        self._bus = bus
        self._events: deque[Event] = deque()
        self._something = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Queue an event, dropping the oldest one when full."""
        if len(self._events) >= QUEUE_LIMIT:
            self._events.popleft()
            self.dropped += 1
        self._events.append(event)
        self._something.set()

    def end(self) -> None:
        """Let the iteration end after what is queued."""
        self._ended = True
        self._something.set()

    async def __aenter__(self) -> LocalSubscription:
        self._bus.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bus.remove(self)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.next()) is not None:
            yield event

    async def next(self, timeout_seconds: float | None = None) -> Event | None:
        """The next event; None when the bus closed. Raises TimeoutError after `timeout_seconds`."""
        async with asyncio.timeout(timeout_seconds):
            while not self._events:
                if self._ended:
                    return None
                self._something.clear()
                await self._something.wait()
        return self._events.popleft()


def nodes_topic(organization_id: str) -> str:
    """`{"change": "online|offline|changed|enrolled|deleted|services|announced|fault|tracking", "node_id", "node"}`."""
    return f"nodes.{organization_id}"


def console_topic(organization_id: str) -> str:
    """Console lines, as `ConsoleLine` in JSON."""
    return f"console.{organization_id}"


def catalog_topic(organization_id: str) -> str:
    """`{"change": "service|flow|organization", "id"}` after services, flows or the organisation changed."""
    return f"catalog.{organization_id}"
