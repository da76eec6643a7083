"""What every sink does, whatever its far end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.outbox.message import Submission
from agent.outbox.sinks.base import CLOSE_SECONDS, Sink
from agent.outbox.store import Outbox

pytestmark = pytest.mark.timeout(120)


def numbered(far_end: Any, first: int, count: int) -> list[Submission]:
    """Messages of two services, in turn."""
    return [
        Submission(service=f"service{number % 2}_py", payload=b"%d" % number, kind=far_end.kind)
        for number in range(first, first + count)
    ]


def holds(count: int) -> Callable[[list[Any]], bool]:
    """Enough: so many different messages."""
    return lambda arrivals: len({arrival[:2] for arrival in arrivals}) >= count


def of_service(arrivals: list[Any], service: str) -> list[int]:
    """Each message's first arrival."""
    return list(dict.fromkeys(sequence for name, sequence, _ in arrivals if name == service))


@asynccontextmanager
async def running(sink: Sink, outbox: Outbox) -> AsyncIterator[None]:
    task = asyncio.create_task(sink.run(outbox.feed(sink.name, sink.kinds)))
    try:
        yield
    finally:
        assert not task.done(), task
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=CLOSE_SECONDS + 5)
        assert done, "the sink did not end in time"
        assert task.cancelled(), task
        outbox.drop_feed(sink.name)


async def test_everything_arrives_and_is_acknowledged(far_end, outbox) -> None:
    await far_end.come_up()
    sink = far_end.sink()
    async with running(sink, outbox):
        await outbox.submit_many(numbered(far_end, 0, 300))
        arrivals = await asyncio.wait_for(far_end.arrivals(holds(300)), 60)
        assert sink.status().connected
    await outbox.flush()
    assert outbox.stats().depth == 0
    assert {payload for _, _, payload in arrivals} == {b"%d" % number for number in range(300)}
    for service in ("service0_py", "service1_py"):
        assert of_service(arrivals, service) == list(range(1, 151))
    status = sink.status()
    assert (status.acknowledged, status.connected, status.connects) == (300, False, 1)


async def test_far_end_that_is_down_at_first_gets_everything_later(far_end, outbox) -> None:
    sink = far_end.sink()
    async with running(sink, outbox):
        await outbox.submit_many(numbered(far_end, 0, 40))
        assert sink.status().acknowledged == 0
        await far_end.come_up()
        arrivals = await asyncio.wait_for(far_end.arrivals(holds(40)), 60)
    assert of_service(arrivals, "service0_py") == list(range(1, 21))


async def test_far_end_that_goes_down_in_between_misses_nothing(far_end, outbox) -> None:
    await far_end.come_up()
    sink = far_end.sink()
    async with running(sink, outbox):
        await outbox.submit_many(numbered(far_end, 0, 1000))
        await asyncio.wait_for(far_end.arrivals(holds(100)), 60)
        await far_end.go_down()
        await outbox.submit_many(numbered(far_end, 1000, 100))
        await far_end.come_up()
        arrivals = await asyncio.wait_for(far_end.arrivals(holds(1100)), 90)
    for service in ("service0_py", "service1_py"):
        assert sorted(of_service(arrivals, service)) == list(range(1, 551))


async def test_nothing_is_acknowledged_that_the_far_end_does_not_have(far_end, outbox) -> None:
    await far_end.come_up()
    sink = far_end.sink()
    async with running(sink, outbox):
        await outbox.submit_many(numbered(far_end, 0, 1000))
        await asyncio.wait_for(far_end.arrivals(holds(50)), 60)
        await far_end.go_down()
    await outbox.flush()
    acknowledged = sum(service.acknowledged.get(sink.name, 0) for service in outbox.stats().services)
    await far_end.come_up()
    arrivals = await asyncio.wait_for(far_end.arrivals(holds(acknowledged)), 60)
    assert outbox.stats().depth == 1000 - acknowledged
    assert len({arrival[:2] for arrival in arrivals}) >= acknowledged


async def test_sink_that_is_run_again_goes_on_where_it_was(far_end, outbox) -> None:
    await far_end.come_up()
    sink = far_end.sink()
    await outbox.submit_many(numbered(far_end, 0, 600))
    for enough in (50, 300):
        async with running(sink, outbox):
            await asyncio.wait_for(far_end.arrivals(holds(enough)), 60)
    async with running(far_end.sink(), outbox):
        arrivals = await asyncio.wait_for(far_end.arrivals(holds(600)), 60)
    assert sorted(of_service(arrivals, "service1_py")) == list(range(1, 301))


async def test_message_that_is_refused_for_ever_is_parked_and_the_rest_goes_on(far_end, outbox) -> None:
    await far_end.come_up()
    async with running(sink := far_end.sink(), outbox):
        await outbox.submit_many([*numbered(far_end, 0, 5), far_end.refused, *numbered(far_end, 5, 5)])
        arrivals = await asyncio.wait_for(far_end.arrivals(holds(10)), 60)
    (parked,) = await outbox.parked()
    assert (parked.sink, parked.message.service) == (sink.name, "odd_py")
    assert parked.reason
    assert outbox.stats().depth == 0
    assert "odd_py" not in {service for service, _, _ in arrivals}
    assert sink.status().parked == 1


async def test_sink_can_be_ended_while_its_far_end_is_down(far_end, outbox) -> None:
    async with running(far_end.sink(), outbox):
        await outbox.submit_many(numbered(far_end, 0, 3))
    assert outbox.stats().depth == 3
