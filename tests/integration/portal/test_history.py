from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from portal.faults.models import Fault
from portal.history.service import HistoryService
from portal.nodes.models import NodeEvent
from portal.testing import FakeClock, HubNode, PortalClient, RunningPortal
from portal.tracking.models import TrackingRecord

DAY = 86_400.0
EVERYTHING: tuple[Any, ...] = (NodeEvent, Fault, TrackingRecord)


async def report(node: HubNode, count: int, *, first: int = 1) -> None:
    """`count` faults, each with its line in the timeline, and as many tracking records."""
    numbers = range(first, first + count)
    place = {"stream": "s1", "service": "reader_py", "time": 1.0}
    faults = [{**place, "sequence": number, "text": f"fault {number}"} for number in numbers]
    tracked = [{**place, "sequence": number, "kind": "tracking", "record": {"n": number}} for number in numbers]
    assert (await node.invoke("faults", faults + tracked))["result"] is None


async def rows(running: RunningPortal, node_id: str) -> list[int]:
    """How many of everything are stored of a node."""
    async with running.portal.database.reading() as session:
        return [
            await session.scalar(select(func.count()).select_from(table).where(table.node_id == node_id)) or 0
            for table in EVERYTHING
        ]


async def test_what_is_older_than_the_retention_is_forgotten_by_the_housekeeping(
    running: RunningPortal, owner: PortalClient, clock: FakeClock
) -> None:
    async with running.enrolled(owner) as node:
        await report(node, 3)
        await clock.advance(60 * DAY)
        await report(node, 2, first=4)
        await running.portal.sweep()
        assert (await rows(running, node.id))[1:] == [5, 5]
        await clock.advance(30 * DAY + 1)
        await running.portal.sweep()
        assert await rows(running, node.id) == [2, 2, 2]
        await owner.sign_in()
        events = (await owner.done("GET", f"/api/nodes/{node.id}/events"))["items"]
        faults = (await owner.done("GET", f"/api/nodes/{node.id}/faults"))["items"]
        tracked = (await owner.done("GET", "/api/tracking"))["items"]
    assert [event["text"] for event in events] == ["reader_py: fault 5", "reader_py: fault 4"]
    assert [fault["text"] for fault in faults] == ["fault 5", "fault 4"]
    assert [record["sequence"] for record in tracked] == [5, 4]


async def test_of_each_node_the_newest_are_kept(running: RunningPortal, owner: PortalClient, clock: FakeClock) -> None:
    history = HistoryService(running.portal.database, keep=timedelta(days=90), most=10, batch=4)
    async with running.enrolled(owner) as node, running.enrolled(owner, "quiet") as quiet:
        await report(node, 25)
        await report(quiet, 3)
        before = await rows(running, quiet.id)
        assert await history.trim(running.portal.now()) > 0
        assert await rows(running, node.id) == [10, 10, 10]
        assert await rows(running, quiet.id) == before
        tracked = (await owner.done("GET", f"/api/tracking?node={node.id}"))["items"]
        assert [record["sequence"] for record in tracked] == list(range(25, 15, -1))
        assert await history.trim(running.portal.now()) == 0

        await clock.advance(3600)
        await report(node, 5, first=26)
        assert await history.trim(running.portal.now()) == 15
        assert await rows(running, node.id) == [10, 10, 10]


async def test_others_write_between_the_batches(running: RunningPortal, owner: PortalClient, clock: FakeClock) -> None:
    database = running.portal.database
    # The housekeeping's own, too, which begins when so much time has passed.
    history = running.portal.history = HistoryService(database, keep=timedelta(days=90), batch=10)
    async with running.enrolled(owner) as node:
        await report(node, 200)
        await clock.advance(91 * DAY)
        trimming = asyncio.create_task(history.trim(running.portal.now()))
        left: list[int] = []
        while not trimming.done():
            async with database.writing() as session:
                left.append(await session.scalar(select(func.count()).select_from(Fault)) or 0)
        await trimming
        assert await rows(running, node.id) == [0, 0, 0]
    between = {count for count in left if 0 < count < 200}
    assert len(between) > 5


async def test_housekeeping_goes_on_after_the_database_has_failed_once(
    running: RunningPortal, owner: PortalClient, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed, again = asyncio.Event(), asyncio.Event()

    async def trim(_: Any) -> int:
        if not failed.is_set():
            failed.set()
            raise OperationalError("DELETE", {}, Exception("database or disk is full"))
        again.set()
        return 0

    monkeypatch.setattr(running.portal.history, "trim", trim)
    for happened in (failed, again):
        async with asyncio.timeout(20):
            while not happened.is_set():
                await clock.advance(31)
                await asyncio.sleep(0)
