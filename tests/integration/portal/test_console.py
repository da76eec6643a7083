from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from portal.bus import LocalBus
from portal.console.service import NODES_LIMIT, ConsoleBook
from portal.testing import FakeClock, HubNode, PortalClient, RunningPortal


async def say(node: HubNode, text: str, level: str = "info", service: str = "reader_py") -> None:
    details = {"service": service, "level": level, "time": 1_800_000_000.0}
    await node.invoke("logMessage", node.identity.name, text, node.identity.organization_id, details)


async def switch_on(owner: PortalClient, node: HubNode) -> None:
    await owner.done("PUT", f"/api/nodes/{node.id}/console", {"on": True})
    assert await node.called("changeDebug") == [True]


async def test_lines_are_kept_while_the_console_is_on(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await say(node, "before")
        await switch_on(owner, node)
        await say(node, "Started", "debug")
        await say(node, "hot", "warning")
        await say(node, "too hot", "error")
        lines = await owner.done("GET", "/api/console")
        none = await owner.done("GET", "/api/console?node=other")
        later = await owner.done("GET", f"/api/console?node={node.identity.name}&after={lines[1]['id']}")
    assert [(line["text"], line["level"], line["service"]) for line in lines] == [
        ("Started", "debug", "reader_py"),
        ("hot", "warning", "reader_py"),
        ("too hot", "error", "reader_py"),
    ]
    assert none == []
    assert [line["text"] for line in later] == ["too hot"]


async def test_console_switches_itself_off_after_thirty_minutes(
    running: RunningPortal, owner: PortalClient, clock: FakeClock
) -> None:
    async with running.enrolled(owner) as node:
        await switch_on(owner, node)
        await clock.advance(29 * 60)
        await running.portal.sweep()
        assert (await owner.done("GET", f"/api/nodes/{node.id}"))["console"]
        await clock.advance(61)
        assert await node.called("changeDebug") == [False]
        assert not (await owner.done("GET", f"/api/nodes/{node.id}"))["console"]


async def test_console_state_is_told_at_the_next_sign_in(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("signOut")
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"console": True})
        async with running.connect() as again:
            assert (await again.sign_in(node.identity))["debug"] is True


async def test_stream_sends_lines_as_they_come(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node, running.enrolled(owner, "other") as other:
        await switch_on(owner, node)
        await switch_on(owner, other)
        async with owner.session.get(f"{running.url}/api/console/stream?node=pump-1") as stream:
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            assert await stream.content.readline() == b": connected\n"
            await say(other, "not this one")
            await say(node, "line\nwith a break")
            line = await next_event(stream.content)
    assert (line["text"], line["node"]) == ("line\nwith a break", "pump-1")


async def next_event(content: Any) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while not (text := await content.readline()).startswith(b"data: "):
            pass
    event: dict[str, Any] = json.loads(text.removeprefix(b"data: "))
    return event


async def test_book_is_bounded_for_each_node(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await switch_on(owner, node)
        for number in range(520):
            await say(node, f"line {number}")
        await say(node, "x" * 100_000)
        lines = await owner.done("GET", "/api/console?limit=2000")
    assert len(lines) == 500
    assert lines[0]["text"] == "line 21"
    assert len(lines[-1]["text"]) == 8192


async def test_lines_of_all_nodes_come_in_their_order_and_go_with_their_node(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node, running.enrolled(owner, "other") as other:
        await switch_on(owner, node)
        await switch_on(owner, other)
        for number in range(6):
            await say(node if number % 2 else other, str(number))
        last = await owner.done("GET", "/api/console?limit=3")
        of_one = await owner.done("GET", f"/api/console?node={node.id}")
        await owner.done("DELETE", f"/api/nodes/{other.id}")
        left = await owner.done("GET", "/api/console")
    assert [line["text"] for line in last] == ["3", "4", "5"]
    assert [line["text"] for line in of_one] == ["1", "3", "5"]
    assert left == of_one


def test_book_keeps_the_lines_of_the_nodes_that_wrote_last(clock: FakeClock) -> None:
    book = ConsoleBook(LocalBus())
    now = datetime.fromtimestamp(clock.wall(), UTC)
    for number in [0, *range(NODES_LIMIT), 0, NODES_LIMIT]:
        name = f"node-{number}"
        book.append(organization_id="o", node_id=name, node=name, service="", level="info", text=name, time=now)
    assert len(book.recent("o", node="node-0", limit=10, after=0)) == 3
    assert book.recent("o", node="node-1", limit=10, after=0) == []
    assert len(book.recent("o", node="node-2", limit=10, after=0)) == 1


async def test_stream_ends_when_its_session_does(running: RunningPortal, owner: PortalClient, clock: FakeClock) -> None:
    async with running.enrolled(owner) as node, running.client() as other:
        await switch_on(owner, node)
        await other.sign_in()
        async with other.session.get(f"{running.url}/api/console/stream") as stream:
            assert await stream.content.readline() == b": connected\n"
            await say(node, "seen")
            assert (await next_event(stream.content))["text"] == "seen"
            await other.done("DELETE", "/api/session")
            await clock.advance(60)
            await say(node, "not seen")
            async with asyncio.timeout(10):
                rest = await stream.content.read()
    assert b"not seen" not in rest
