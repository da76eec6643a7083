from __future__ import annotations

from typing import Any

import msgspec

from agent.clock import SystemClock
from agent.hub.reporter import Reporter
from agent.outbox.message import Submission
from agent.outbox.store import Outbox
from portal.hub.records import TRACKING_LIMIT_BYTES
from portal.testing import HubNode, PortalClient, RunningPortal


def tracked(sequence: Any, **changes: Any) -> dict[str, Any]:
    return {
        "stream": "s1",
        "service": "packer_py",
        "sequence": sequence,
        "boot": "b1",
        "time": 1_800_000_000.5,
        "kind": "tracking",
        "record": {"ticket": sequence, "parts": ["lid", "box"]},
    } | changes


async def listed(owner: PortalClient, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await owner.done("GET", f"/api/tracking{query}"))["items"]
    return found


async def test_tracking_record_is_stored_whole_before_it_is_completed_and_counts_once(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        assert (await node.invoke("faults", [tracked(1), tracked(2)]))["result"] is None
        assert len(await listed(owner)) == 2
        assert (await node.invoke("faults", [tracked(2), tracked(2), tracked(3)]))["result"] is None
        newest, *others = await listed(owner)
        assert (await owner.done("GET", "/api/faults"))["items"] == []
        assert (await owner.done("GET", f"/api/nodes/{node.id}"))["faults"] == 0
    assert [item["sequence"] for item in others] == [2, 1]
    assert {key: newest[key] for key in ("node", "service", "sequence", "stream", "record", "at")} == {
        "node": "pump-1",
        "service": "packer_py",
        "sequence": 3,
        "stream": "s1",
        "record": {"ticket": 3, "parts": ["lid", "box"]},
        "at": "2027-01-15T08:00:00.500000Z",
    }


async def test_fault_and_tracking_record_of_the_same_number_are_both_stored(
    running: RunningPortal, owner: PortalClient
) -> None:
    async with running.enrolled(owner) as node:
        both = [tracked(1), tracked(1, kind="fault", text="jammed"), tracked(1, stream="s2"), tracked(1, service="x")]
        await node.invoke("faults", both)
        assert len((await owner.done("GET", "/api/faults"))["items"]) == 1
        assert len(await listed(owner)) == 3


async def test_records_are_found_by_node_and_service_in_parts(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node, running.enrolled(owner, "pump-2") as other:
        await node.invoke("faults", [tracked(number) for number in range(1, 6)])
        await other.invoke("faults", [tracked(1), tracked(1, service="scale_py")])
        first = await owner.done("GET", f"/api/tracking?node={node.id}&limit=3")
        rest = await owner.done("GET", f"/api/tracking?node={node.id}&limit=3&after={first['next']}")
        scales = await listed(owner, "?service=scale_py")
        wrong = await owner.call("GET", "/api/tracking?after=x")
    assert [item["sequence"] for item in first["items"]] == [5, 4, 3]
    assert [item["sequence"] for item in rest["items"]] == [2, 1]
    assert rest["next"] is None
    assert [(item["node"], item["service"]) for item in scales] == [("pump-2", "scale_py")]
    assert (wrong.status, wrong.code) == (422, "cursor_invalid")


async def test_record_in_another_shape_is_kept_as_what_it_is(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        huge = {"list": ["x" * 1000] * (TRACKING_LIMIT_BYTES // 1000)}
        records = [
            tracked(1, record=None, text="texts only", description="", code=""),
            tracked(2, record=[1, None]),
            tracked(3, record=huge),
            tracked(4, record={"nul": "a\x00b"}),
        ]
        assert (await node.invoke("faults", records))["result"] is None
        nul, clipped, other, texts = [item["record"] for item in await listed(owner)]
    assert texts == {"text": "texts only"}
    assert other == {"message": [1, None]}
    assert clipped["clipped"].startswith('{"list":["xxx')
    assert nul == {"nul": "a\x00b"}


async def test_switch_of_tracking_reaches_the_node(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        assert node.settings["enableTracking"] is False
        await owner.done("PATCH", f"/api/nodes/{node.id}", {"tracking": True})
        assert await node.called("changeTracking") == [True]


async def test_records_go_with_their_node(running: RunningPortal, owner: PortalClient) -> None:
    async with running.enrolled(owner) as node:
        await node.invoke("faults", [tracked(1)])
        await owner.done("DELETE", f"/api/nodes/{node.id}")
        assert await listed(owner) == []


async def test_what_a_service_tracks_arrives_as_the_agent_reports_it(
    running: RunningPortal, owner: PortalClient, tmp_path: Any
) -> None:
    record = {"ticket": 4711, "description": "weighed", "nested": {"kg": 1.25, "ok": True, "note": None}}
    clock = SystemClock()
    outbox = await Outbox.open(None, node="pump-1", clock=clock)
    await outbox.submit(Submission(service="scale_py", kind="tracking", payload=msgspec.json.encode(record)))
    messages = await outbox.feed("portal", frozenset({"tracking"})).take(10)
    async with running.enrolled(owner) as node:
        reporter = Reporter(Invoking(node), outbox, state=tmp_path, clock=clock)  # type: ignore[arg-type]
        await reporter.deliver_faults(messages)
        await reporter.deliver_faults(messages)
        [stored] = await listed(owner)
    await outbox.close()
    assert stored["record"] == record
    assert (stored["service"], stored["sequence"], stored["stream"]) == ("scale_py", 1, outbox.stream)


class Invoking:
    """As much of a hub session as delivering needs."""

    def __init__(self, node: HubNode) -> None:
        self._node = node

    async def invoke(self, target: str, *arguments: Any) -> Any:
        answer = await self._node.invoke(target, *arguments)
        assert "error" not in answer, answer
        return answer["result"]
