from __future__ import annotations

import pytest

from portal.bus import QUEUE_LIMIT, LocalBus


async def test_subscriber_gets_what_happens_to_its_topics_in_order() -> None:
    bus = LocalBus()
    async with bus.subscribe("a", "b") as events:
        for topic, number in (("a", 1), ("c", 2), ("b", 3)):
            bus.publish(topic, {"n": number})
        assert [(await events.next()).data["n"] for _ in range(2)] == [1, 3]  # type: ignore[union-attr]
        with pytest.raises(TimeoutError):
            await events.next(0.001)


async def test_slow_subscriber_loses_the_oldest_and_knows_how_many() -> None:
    bus = LocalBus()
    async with bus.subscribe("a") as events:
        for number in range(QUEUE_LIMIT + 5):
            bus.publish("a", {"n": number})
        first = await events.next()
        assert first is not None
        assert first.data["n"] == 5
        assert events.dropped == 5


async def test_closing_ends_every_subscription_after_what_is_queued() -> None:
    bus = LocalBus()
    async with bus.subscribe("a") as events:
        bus.publish("a", {})
        bus.close()
        assert [event.topic async for event in events] == ["a"]
    async with bus.subscribe("a") as late:
        assert await late.next() is None


async def test_left_subscription_is_forgotten() -> None:
    bus = LocalBus()
    async with bus.subscribe("a"):
        pass
    assert bus._subscriptions == {}
