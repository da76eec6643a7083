"""The guard: a message that ends every connection is found and parked, and nothing else ever is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agent.clock import SystemClock
from agent.outbox.memory import open_memory_outbox
from agent.outbox.message import Submission
from agent.outbox.sinks.base import StatusBook
from agent.outbox.sinks.guard import GuardedFeed
from agent.outbox.store import Outbox

TELEMETRY = frozenset({"telemetry"})


@pytest.fixture
async def outbox() -> AsyncIterator[Outbox]:
    outbox = await open_memory_outbox()
    yield outbox
    await outbox.close()


class FarEnd:
    """Confirms what it gets, and ends the connection on a poisonous message; counts connections."""

    def __init__(self, guarded: GuardedFeed, *, poison: bytes = b"poison", down: bool = False) -> None:
        self.guarded = guarded
        self.poison = poison
        self.down = down
        self.connections = 0
        self.received: list[bytes] = []

    async def connect(self) -> None:
        """One connection: until it ends, or everything is confirmed."""
        self.connections += 1
        while True:
            async with asyncio.timeout(5):
                batch = await self.guarded.take(10)
            for message in batch:
                if self.down or message.payload == self.poison:
                    await self.guarded.session_over("closed by the far end")
                    return
                self.received.append(message.payload)
                await self.guarded.acknowledge([message.id])


def messages(*payloads: bytes) -> list[Submission]:
    return [Submission(service="s_py", payload=payload) for payload in payloads]


async def test_poisonous_message_is_parked_and_the_others_arrive(outbox) -> None:
    book = StatusBook("x", SystemClock())
    end = FarEnd(GuardedFeed(outbox.feed("x", TELEMETRY), book))
    await outbox.submit_many(messages(b"1", b"2", b"poison", b"3", b"4"))
    while not book.parked:
        await end.connect()
        assert end.connections < 10
    await outbox.flush()
    (parked,) = await outbox.parked()
    assert parked.message.payload == b"poison"
    assert "closed by the far end" in parked.reason
    connecting = asyncio.create_task(end.connect())
    await outbox.submit_many(messages(b"poison-free"))
    while b"poison-free" not in end.received:
        await outbox.flush()
    connecting.cancel()
    assert sorted(end.received) == sorted([b"1", b"2", b"3", b"4", b"poison-free"])
    assert (book.acknowledged, book.parked) == (5, 1)


async def test_far_end_that_closes_every_connection_parks_nothing(outbox) -> None:
    book = StatusBook("x", SystemClock())
    end = FarEnd(GuardedFeed(outbox.feed("x", TELEMETRY), book), down=True)
    await outbox.submit_many(messages(b"1", b"2", b"3"))
    for _ in range(40):
        await end.connect()
    assert (book.parked, end.received) == (0, [])
    end.down = False
    connecting = asyncio.create_task(end.connect())
    while len(end.received) < 3:
        await outbox.flush()
    connecting.cancel()
    assert sorted(end.received) == [b"1", b"2", b"3"]


async def test_single_message_that_ends_the_connection_is_tried_again_and_not_parked(outbox) -> None:
    book = StatusBook("x", SystemClock())
    guarded = GuardedFeed(outbox.feed("x", TELEMETRY), book, others_seconds=0.01)
    end = FarEnd(guarded)
    await outbox.submit_many(messages(b"poison"))
    for _ in range(12):
        await end.connect()
    assert book.parked == 0
    assert outbox.stats().depth == 1


async def test_two_poisonous_messages_are_both_found(outbox) -> None:
    book = StatusBook("x", SystemClock())
    end = FarEnd(GuardedFeed(outbox.feed("x", TELEMETRY), book))
    await outbox.submit_many(messages(b"poison", b"1", b"2", b"poison", b"3", b"4", b"5"))
    while book.parked < 2:
        await end.connect()
        assert end.connections < 30
    await outbox.flush()
    assert [parked.message.sequence for parked in await outbox.parked()] == [1, 4]


async def test_session_that_ended_on_purpose_blames_nobody(outbox) -> None:
    guarded = GuardedFeed(outbox.feed("x", TELEMETRY), StatusBook("x", SystemClock()))
    await outbox.submit_many(messages(b"1", b"2"))
    for _ in range(10):
        assert len(await guarded.take(10)) == 2
        await guarded.session_over("", blame=False)


async def test_closing_gives_back_what_was_held_aside(outbox) -> None:
    feed = outbox.feed("x", TELEMETRY)
    guarded = GuardedFeed(feed, StatusBook("x", SystemClock()))
    end = FarEnd(guarded)
    await outbox.submit_many(messages(b"poison", b"1"))
    for _ in range(4):
        await end.connect()
    (other,) = await guarded.take(10)
    assert other.payload == b"1"
    guarded.close()
    assert [message.payload for message in await feed.take(10)] == [b"poison", b"1"]
